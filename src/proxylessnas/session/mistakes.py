"""Which test images the network is right about, and those that it is most wrongly sure of."""

from __future__ import annotations

import base64
import io
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from proxylessnas.architecture import InputInfo

MISTAKES = "mistakes.json"
KEPT, SIDE = 12, 112  # images, and pixels of their longer side


class Mistakes:
    """Called with every batch of an evaluation; keeps the `KEPT` surest wrong answers, small.

    info: how the images became inputs, so that they can be turned back. Of several ranks each
    keeps its own share's. right: of each batch, which images the answer was right about.
    """

    def __init__(self, info: InputInfo) -> None:
        self.info = info
        self.worst: list[dict[str, Any]] = []
        self.right: list[Tensor] = []

    def __call__(self, inputs: Any, target: Any, output: Any) -> None:
        if not (isinstance(inputs, Tensor) and inputs.ndim == 4 and self.info.mean):
            return
        sure, answers = output.float().softmax(1).max(1)
        self.right.append((answers == target).cpu())
        wrong = torch.where(answers == target, -1.0, sure)
        for value, index in zip(
            *(t.tolist() for t in wrong.topk(min(KEPT, len(wrong)))), strict=True
        ):
            full = len(self.worst) == KEPT and value <= self.worst[-1]["probability"]
            if value < 0 or full:
                return
            self.worst.append(
                {
                    "probability": value,
                    "answer": int(answers[index]),
                    "true": int(target[index]),
                    "image": self._picture(inputs[index]),
                }
            )
            self.worst.sort(key=lambda row: -row["probability"])
            del self.worst[KEPT:]

    def _picture(self, pixels: Tensor) -> str:
        """An input [channels, height, width] as a small JPEG, in base64."""
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.info.mean, self.info.std))
        levels = ((pixels.float().cpu() * std + mean).clamp(0, 1) * 255).round().byte()
        image = Image.fromarray(
            levels[0].numpy() if len(levels) == 1 else levels[:3].permute(1, 2, 0).numpy()
        )
        image.thumbnail((SIDE, SIDE))
        image.save(file := io.BytesIO(), "JPEG", quality=80)
        return base64.b64encode(file.getvalue()).decode()
