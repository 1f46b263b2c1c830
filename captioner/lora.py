"""Low-rank adapters for a style's fine-tune; LoRA (2106.09685), section 4.1."""

import torch
from torch import Tensor, nn
from torch.func import functional_call

from captioner.checkpoint import Stack
from captioner.training import StyleModel

SCALE = 2.0  # of the update, alpha / rank in the paper's terms


class LoraModel(nn.Module):
    """A frozen StyleModel whose attention and MLP matrices each get an update of low rank.

    The update starts at zero, so step 0 is the model as it was. `whole` names parameters that are
    trained as they are, such as tables that were given new rows. Only what is trained is in the state
    dict.
    """

    def __init__(
        self, model: StyleModel, rank: int, *, whole: tuple[str, ...] = (), seed: int = 0
    ) -> None:
        super().__init__()
        self._frozen = [model.requires_grad_(False)]  # no submodule: belongs in no checkpoint
        draws = torch.Generator().manual_seed(seed)
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        self.whole = nn.ParameterDict()
        for name, weight in model.named_parameters():
            key = name.replace(".", "/")  # a ParameterDict takes no dots
            if name.removeprefix("stack.") in whole:
                self.whole[key] = nn.Parameter(weight.detach().clone())
            elif weight.ndim == 2 and (".resblocks." in name or ".cross_attn." in name):
                rows, columns = weight.shape
                down = torch.randn(rank, columns, generator=draws) * columns**-0.5
                self.down[key] = nn.Parameter(down)
                self.up[key] = nn.Parameter(torch.zeros(rows, rank))

    @property
    def model(self) -> StyleModel:
        return self._frozen[0]

    def _apply(self, fn: object, recurse: bool = True) -> "LoraModel":
        self.model._apply(fn)
        return super()._apply(fn, recurse)

    def forward(self, pixels: Tensor, ids: Tensor) -> Tensor:
        """Normalised pixels (B, 3, size, size), ids (B, S) -> logits (B, S, V)."""
        return functional_call(self.model, self._weights(), (pixels, ids))

    def _weights(self) -> dict[str, Tensor]:
        frozen = dict(self.model.named_parameters())
        weights = {key.replace("/", "."): value for key, value in self.whole.items()}
        for key, up in self.up.items():
            name = key.replace("/", ".")
            weights[name] = frozen[name] + SCALE * (up @ self.down[key])
        return weights

    @torch.no_grad()
    def merged(self) -> Stack:
        """The stack with the updates added in: as fast to decode as any other."""
        weights = self._weights()
        for name, parameter in self.model.named_parameters():
            if name in weights:
                parameter.copy_(weights[name])
        for updates in self.up.values():
            updates.zero_()
        return self.model.stack
