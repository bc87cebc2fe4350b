"""Peak memory of a forward of the public, unoptimised code of VGGT, Pi3 and VGGT-Omega, counted from their source.

    bytes = weights + frames * (images + tokens per frame * C * b)

No number is fitted, but the count was made with the published figures at hand, so that it explains them rather than
predicts them blindly; LiteVGGT's row is the one whose code was not read. b counts, in bytes per channel, the arrays
that are alive at the fullest moment of a forward under bf16 autocast, where norms, the residual stream and so all kept
layers are float32.

* VGGT, the trunk alone, weights in bf16 (README): 23 of 24 layers kept, frame and global side by side (184); in the
  last frame block the stream, the previous frame output, the patch tokens, the norm, qkv, queries and keys, and a
  rotation in progress (38). Images twice, raw and normalised.
* Pi3, weights in float32 and cached once more in bf16: in the camera decoder, the last two blocks side by side (8), the
  outputs of the two decoders before (4), the stream, its norm, and two hidden arrays of the MLP (24).
* VGGT-Omega, weights as Pi3 (the cache for the trunk): three of four kept layers (24); in the last frame block, as for
  VGGT but with the rotation in float32 on all heads at once (46).
* VGGT* with its weights and its whole stream in bf16 (LiteVGGT, Tab. 7): four kept layers (16), and in the MLP the
  stream, the attended stream, the norm, the patch tokens, and two hidden arrays (24).

Sources: facebookresearch/vggt, yyfz/Pi3, facebookresearch/vggt-omega (public code).
"""

from accel.backbones import Backbone, backbone
from accel.layout import TokenLayout

GIB = 1024**3
WEIGHTS = {  # parameters of the whole model, and of the part that autocast keeps in bf16, too
    "vggt trunk": 909e6,
    "vggt": 1190e6,
    "pi3": 959e6,
    "vggt-omega": 1144e6,
    "vggt-omega trunk": 908e6,
}
ALIVE = {"vggt": 184 + 38, "pi3": 8 + 4 + 24, "vggt-omega": 24 + 46, "bf16": 16 + 24}


def predict_gib(net: str | Backbone, layout: TokenLayout, *, heads: bool) -> float:
    """GiB of the public code's forward; VGGT with heads is the bf16 version that keeps four layers."""
    net = backbone(net)
    pixels = layout.patches_per_frame * net.patch_size**2
    images = 2 * 4.0 * 3 * pixels
    alive = ALIVE["bf16" if net.name == "vggt" and heads else net.name]
    if net.name == "vggt":
        weights = 2 * WEIGHTS["vggt" if heads else "vggt trunk"]
    else:
        weights = 4 * WEIGHTS[net.name] + 2 * WEIGHTS["pi3" if net.name == "pi3" else "vggt-omega trunk"]
    return (weights + layout.frames * (images + layout.tokens_per_frame * net.channels * alive)) / GIB
