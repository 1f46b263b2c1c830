"""PatchGAN: a convolutional discriminator that judges every patch of an image for itself."""

# Shapes: B batch, H W pixels, h w patches.

from itertools import pairwise

from torch import Tensor, nn

from pipeline.errors import UserError

_SLOPE = 0.2  # of leaky ReLU below zero


def require_patch(image_size: int, layers: int) -> None:
    """UserError where an image of so many pixels a side has no logit."""
    if image_size >> layers < 3:
        raise UserError(
            f"{layers} disc_layers leave no patch of {image_size} pixels",
            "give fewer",
        )


class PatchGAN(nn.Module):
    """pix2pix's discriminator (1611.07004, section 3.2.2 and appendix 6.1.2).

    `layers` convolutions of kernel 4 and stride 2, then two of stride 1: one logit per patch of 70
    pixels for 3 layers, 34 for 2, 16 for 1. width: channels after the first convolution.

    GroupNorm stands where the papers have BatchNorm: what is said of an image then depends on no
    other image of its batch, so micro-batches and processes add up to the whole batch, and real and
    reconstructed images may go through it one after the other, or any number of times. Without
    normalisation, weights begin as 1502.01852 has them, and a gradient penalty has to bound the logits.
    """

    def __init__(self, width: int = 64, layers: int = 3, *, is_normalised: bool = True) -> None:
        super().__init__()
        widths = [width * min(2**i, 8) for i in range(layers + 1)]
        body: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(_SLOPE)]
        for i, (before, after) in enumerate(pairwise(widths), 1):
            stride = 2 if i < layers else 1
            body.append(nn.Conv2d(before, after, 4, stride, 1, bias=not is_normalised))
            if is_normalised:
                body.append(nn.GroupNorm(min(32, after // 4), after))
            body.append(nn.LeakyReLU(_SLOPE))
        self.body = nn.Sequential(*body, nn.Conv2d(widths[-1], 1, 4, 1, 1))
        for layer in self.body:
            if isinstance(layer, nn.Conv2d):
                if is_normalised:
                    nn.init.normal_(layer.weight, 0.0, 0.02)  # pix2pix's
                else:
                    nn.init.kaiming_normal_(layer.weight, _SLOPE)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> logits (B, 1, h, w), high where a patch looks real."""
        return self.body(pixels)
