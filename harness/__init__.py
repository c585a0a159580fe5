"""Runs the engine over timm: model names become jobs, workers turn jobs into records, tables are made from records.

`models` and `weights` build what is swept, `worker` and `verification` find out about one model, `sweep` does so for
all of them, `records` keeps what was found, `tables` shows it, and `cli` is the command line.
"""
