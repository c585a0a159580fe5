"""Residual streams: channels that several layers make, and that are added together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from torchorbit.arguments import Ref, operands_of

if TYPE_CHECKING:
    from torchorbit.orbits.orbit import Orbit

#: Whether an orbit's channels are those of a residual ``"stream"``, to which several layers add, or ``"inner"`` ones.
Role = Literal["stream", "inner"]

_SUMS = frozenset({"add", "sub"})


def role_of(orbit: Orbit) -> Role:
    """Whether what is made at different depths of the model is added together in an orbit.

    What a value was made of is followed through everything that passes channels on one by one: norms, activations,
    depthwise convolutions. At an addition each side has to be made of something that the other is not made of. So a
    residual connection makes a stream. A gate that is multiplied by what it gates does not, nor does a polynomial of
    one value (an activation that is written out), a table of parameters that is added, or the sum of parallel layers
    that take in the same (RepVGG's branches, without that of the identity).
    """
    if len(orbit.sources) < 2:
        return "inner"
    from torchorbit.orbits.passing import Passing  # it knows orbits

    passing = Passing(orbit.orbits, orbit.reading, orbit.components)
    calls = orbit.orbits.model.calls
    made_of: dict[str, frozenset[str]] = {}
    for name in passing.given:
        call = calls.get(name)
        sides = [made_of[other] for other in passing.taken.get(name, ()) if other in made_of]
        if call is not None and call.operator in _SUMS and len(sides) == 2:
            one, other = sides
            if one - other and other - one:
                return "stream"
        carried = frozenset[str]().union(*sides)
        if name in passing.sinks or not carried:  # it makes the channels anew
            operands = operands_of({} if call is None else call.args)
            carried = frozenset([arg.vertex for arg in operands if isinstance(arg, Ref)])
        made_of[name] = carried
    return "inner"
