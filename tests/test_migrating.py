"""The page on migrating leaves nothing out, names tests that there are, and its examples run."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "migrating.md"

#: What the documents of the four systems name: calls, classes, methods, options, attributes, tools, features.
NAMES = {
    "ENOT": """
        calibrate_and_prune_model_equal calibrate_and_prune_model_optimal calibrate_and_prune_model pruning_ratio
        finetune_bn calibration_steps calibration_epochs sample_to_n_samples sample_to_model_inputs show_tqdm entry_point
        latency_calculation_function target_latency channels_selection_constraint n_search_steps kwargs dataloader
        loss_function set_detect_anomaly default_sample_to_model_inputs default_sample_to_n_samples
        ModelPruningInfo graph prunable_groups unprunable_groups channel_labels_by_nodes node_users gate_container
        gate_names_by_locations prunable_group_gate_names gate_apply_info child_labels_by_parents int_pruners
        PruningCalibrator pruning_info max_prunable_labels calibrate_model_for_pruning n_steps epochs prune_model
        prune_labels inplace label_selector Label Gate
        UniformPruningLabelSelector GlobalPruningLabelSelectorByChannels n_channels_or_ratio
        GlobalLatencyPruningLabelSelector selector_cb KnapsackPruningLabelSelector strict_label_order channels_constraint
        max_iterations solver_execution_time_limit verbose OptimalPruningLabelSelector n_starting_points batch_size
        additional_starting_points_generator StartingPointsGenerator device dtype handle_ctrl_c seed scbo_kwargs
        LatencyMeasurementError TargetLatencyMixin PruningLabelSelector extract_labels_info sort_labels drop_shared_gates
        normalize_score eps get_most_important_labels sorted_labels_by_gates select ScorePruningLabelSelector _select
        labels_by_gates labels_score EvenPruningLabelSelector
        ChannelsSelectorConstraint _get get apply prune_n number_of_channels low high step
        DefaultChannelsSelectorConstraint absolute_min_channels relative_min_channels fixed_step
        DummyChannelsSelectorConstraint
        tabulate_module_dependencies tabulate_unprunable_groups tabulate_label_dependencies tabulate_label_filters
        get_label_filters get_tracing_node_by_module_name get_module_name_by_tracing_node module_name
        show_op_with_weights_only show_parameter_nodes show_all_nodes with_tensors LabelFilterInfo tensor_name shape
        mapping tensor getattr_complex Torchvision TIMM OpenMMLab
    """,
    "TorchPruner": """
        RandomAttributionMetric APoZAttributionMetric SensitivityAttributionMetric TaylorAttributionMetric
        WeightNormAttributionMetric ShapleyAttributionMetric run module scores model data_generator criterion device
        input target reduction find_best_evaluation_module sv_samples signed
        Pruner input_size optimizer prune_model indices cascading_modules prune_module direction original_len
        prune_parameter parameter_name axis Linear _ConvNd _DropoutNd _BatchNorm SGD
    """,
    "Torch-Pruning 0.2": """
        DependencyGraph build_dependency example_inputs get_pruning_plan prune_conv idxs pruning_plan exec
        prune_batchnorm prune_related_conv _prune_elementwise_op _ElementWiseOp Function groups
        prune_resnet18_cifar10 round test_models save state_dict DenseNet ResNet Inception AlexNet VGG split cat chunk
    """,
    "torch-dag": """
        build_from_unstructured_module DagModule activation insert nesting hierarchy wrap save load FX symbolic_trace kmapp
        FLOPs GFLOPs params reduction vit deit3 timm proportion table checkpoints Block-pruning fine-tuning
    """,
}


def sections():
    """Title of every section of a system -> its text."""
    parts = re.split(r"^## (.+)$", PAGE.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def rows():
    """The cells of every row of every table."""
    found = []
    for line in PAGE.read_text().splitlines():
        if line.startswith("|") and not line.startswith(("|---", "| there |")):
            found.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))])
    return found


def named_tests():
    """Names of the tests of the rows."""
    trees = [ast.parse(path.read_text()) for path in (ROOT / "tests" / "migrating").glob("test_*.py")]
    return {node.name for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_row_says_what_is_here_and_names_a_test():
    there = named_tests()
    assert len(rows()) > 100
    for row in rows():
        assert len(row) == 4, row
        assert row[0], row
        assert row[1], row
        named = re.findall(r"`(\w+)`", row[3])
        assert named, row
        assert set(named) <= there, row
        assert row[3] == ", ".join([f"`{name}`" for name in named]), row


def test_every_test_of_a_row_is_named():
    named = {name for row in rows() for name in re.findall(r"`(\w+)`", row[3])}
    assert {name for name in named_tests() if name.startswith("test_")} == named


@pytest.mark.parametrize("system", NAMES)
def test_nothing_of_a_document_is_left_out(system):
    text = " ".join([row[0] for row in table_rows(sections()[system])])
    missing = [name for name in NAMES[system].split() if not re.search(rf"(?<![A-Za-z]){re.escape(name)}", text)]
    assert not missing


def table_rows(text):
    return [row for row in rows() if any(line.startswith("|") and row[0] in line for line in text.splitlines())]


def test_each_section_begins_with_the_same_thing_before_and_after():
    assert list(sections()) == list(NAMES)
    for text in sections().values():
        before, after = text.index("```py\n"), text.index("```python\n")
        assert before < after < text.index("| there |")


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", PAGE.read_text()):
        assert (PAGE.parent / target).exists(), target


@pytest.mark.parametrize("system", NAMES)
def test_the_examples_run_as_written(system, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = "\n".join(re.findall(r"```python\n(.*?)```", sections()[system], re.DOTALL))
    exec(compile(code, str(PAGE), "exec"), {})
    if system == "Torch-Pruning 0.2":
        assert "11,211 parameters will be removed" in capsys.readouterr().out
        assert (tmp_path / "resnet18-pruned" / "graph.json").exists()
