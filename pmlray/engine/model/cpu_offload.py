"""Weights that steps never touch: in host memory, and on the GPU only while their module is called.

Of Qwen3-8B with its adapter at layer 24 that leaves 5.5 of 16 GB on the GPU. Never run on a GPU so
far: the tests bring copies in on a CPU, and count those that are alive.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn


class HostedWeights:
    """Hooks that copy a module's weights to the GPU before its call, and free them after.

    weights: by module, its parameters that lie on the host, each of one module only. bring:
    gives a copy on the device. Nothing that is brought in may be written to.
    """

    def __init__(
        self,
        weights: Mapping[nn.Module, Sequence[nn.Parameter]],
        bring: Callable[[Tensor], Tensor],
    ) -> None:
        self._at_home = {m: [(p, p.data) for p in own] for m, own in weights.items() if own}
        self._users = dict.fromkeys(self._at_home, 0)
        self._bring = bring
        for module in self._at_home:
            module.register_forward_pre_hook(lambda module, _args: self._take(module))
            # Also where the call fails.
            module.register_forward_hook(
                lambda module, _args, _output: self._let_go(module), always_call=True
            )

    @contextmanager
    def held(self) -> Generator[None]:
        """Keep all of them on the device meanwhile: generation calls every module for every token,
        and each call would bring its weights in anew."""
        with ExitStack() as stack:
            for module in self._at_home:
                stack.callback(self._let_go, module)
                self._take(module)
            yield

    def _take(self, module: nn.Module) -> None:
        self._users[module] += 1
        if self._users[module] == 1:
            for parameter, at_home in self._at_home[module]:
                parameter.data = self._bring(at_home)

    def _let_go(self, module: nn.Module) -> None:
        self._users[module] -= 1
        if self._users[module] == 0:
            for parameter, at_home in self._at_home[module]:
                parameter.data = at_home


def nothing_hosted() -> HostedWeights:
    """For a base whose weights are all on the device."""
    return HostedWeights({}, lambda weight: weight)
