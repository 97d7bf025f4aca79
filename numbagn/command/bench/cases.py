"""What is measured: one table of shapes, one table of variants (direction, dtype, layout, activation)."""

from collections.abc import Collection
from dataclasses import dataclass
from math import prod


@dataclass(frozen=True)
class Case:
    name: str
    shape: tuple[int, ...]  # (N, C, ...), channels first, whatever the layout in memory
    groups: int
    reason: str

    @property
    def elements(self) -> int:
        return prod(self.shape)


CASES = (
    Case("pixel", (1, 32, 1, 1), 8, "one position: nothing but call overhead"),
    Case("small-8", (1, 32, 8, 8), 8, "8 KiB: the call still costs more than the work"),
    Case("small-16", (1, 64, 16, 16), 32, "64 KiB: about where threads start to pay"),
    Case("odd-7x7", (3, 30, 7, 7), 5, "no size is a multiple of a vector"),
    Case("odd-13x17", (2, 33, 13, 17), 11, "odd channels in a group, odd positions"),
    Case("odd-5", (64, 48, 5), 16, "many tiny groups of 15 elements"),
    Case("diffusion-64", (2, 320, 64, 64), 32, "latent diffusion U-Net, first level"),
    Case("diffusion-32", (2, 640, 32, 32), 32, "latent diffusion U-Net, second level"),
    Case("diffusion-16", (2, 1280, 16, 16), 32, "latent diffusion U-Net, third level"),
    Case("diffusion-8", (2, 1280, 8, 8), 32, "latent diffusion U-Net, middle block"),
    Case("vae-64", (1, 512, 64, 64), 32, "image decoder, first level: 8 MiB"),
    Case("vae-256", (1, 256, 256, 256), 32, "image decoder: 64 MiB, groups of 2 MiB"),
    Case("vae-512", (1, 128, 512, 512), 32, "image decoder, last level: 128 MiB, groups of 4 MiB"),
    Case("detection", (1, 256, 100, 152), 32, "a feature pyramid's largest level, 15 MiB"),
    Case("unet-3d", (1, 32, 64, 128, 128), 8, "medical volume, groups of 16 MiB"),
    Case("volume-g1", (1, 16, 128, 128, 128), 1, "one group of 128 MiB: threads must share it"),
    Case("audio-g1", (8, 512, 2000), 1, "speech separation: a group is a whole sample"),
    Case("audio-instance", (16, 512, 4096), 512, "speech encoder's first layer: a group is a channel"),
    Case("resnet-56", (32, 64, 56, 56), 32, "training batch, early layer, 24 MiB"),
    Case("resnet-14", (32, 256, 14, 14), 32, "training batch, late layer, groups of 6 KiB"),
    Case("layer-768", (4096, 768), 1, "layer norm of a transformer: a group is a row"),
    Case("layer-1024", (32 * 512, 1024), 1, "layer norm of a larger one, 64 MiB"),
    Case("photos", (8, 3, 512, 512), 3, "a batch of photographs, normalized color by color"),
    Case("layer-8192", (512, 8192), 1, "layer norm of a language model: rows larger than the first cache"),
)

CASE_NAMES = tuple(case.name for case in CASES)

# One of each kind of work: call overhead, cache-sized, many small groups, larger than the caches, odd width, batch.
REPRESENTATIVE = ("small-8", "diffusion-64", "diffusion-16", "vae-256", "detection", "resnet-56")
# For variants that differ from another in one thing only: in the caches, and beyond them.
FEW = ("diffusion-16", "diffusion-64", "vae-256")


@dataclass(frozen=True)
class Variant:
    name: str
    direction: str = "forward"  # or "backward": dx, dweight and dbias from dy and the saved statistics
    dtype: str = "float32"
    layout: str = "NCHW"  # or "NHWC": channels last, whatever the number of spatial axes
    activation: str | None = None
    cases: tuple[str, ...] = REPRESENTATIVE  # those that `python -m benchmarks` measures, unless told


VARIANTS = (
    Variant("forward", cases=tuple(name for name in CASE_NAMES if name != "photos")),
    Variant("channels-last", layout="NHWC"),
    Variant("float16", dtype="float16"),
    Variant("bfloat16", dtype="bfloat16"),
    Variant("float64", dtype="float64"),
    Variant("float16-channels-last", dtype="float16", layout="NHWC", cases=FEW),
    Variant("bfloat16-channels-last", dtype="bfloat16", layout="NHWC", cases=FEW),
    Variant("float64-channels-last", dtype="float64", layout="NHWC", cases=FEW),
    Variant("uint8", dtype="uint8", cases=(*FEW, "resnet-56", "photos")),
    Variant("uint8-channels-last", dtype="uint8", layout="NHWC", cases=(*FEW, "resnet-56", "photos")),
    Variant("silu", activation="silu"),
    Variant("relu", activation="relu"),
    Variant("backward", direction="backward", cases=(*REPRESENTATIVE, "layer-768", "layer-8192")),
    Variant("backward-channels-last", direction="backward", layout="NHWC"),
    Variant("backward-float16", direction="backward", dtype="float16", cases=FEW),
    Variant("backward-bfloat16", direction="backward", dtype="bfloat16", cases=FEW),
)

VARIANT_NAMES = tuple(variant.name for variant in VARIANTS)


def case_named(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


def variant_named(name: str) -> Variant:
    return next(variant for variant in VARIANTS if variant.name == name)


def pairs_of(variants: Collection[str], cases: Collection[str]) -> list[tuple[str, str]]:
    """The (variant, case) pairs to measure, in table order."""
    return [(variant, case) for variant in VARIANT_NAMES if variant in variants for case in CASE_NAMES if case in cases]
