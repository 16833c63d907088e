"""Narrow trained models of five tasks by one call: only the model, its data and its loss differ.

    python examples/specialise_tasks.py detection        # or images, segmentation, tabular, text
    python examples/specialise_tasks.py --quick          # all of them, to see that they run

Everything is synthesised, so that nothing is downloaded. `examples/specialise.py` does the same for
sound, step by step.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, l1_loss, mse_loss
from torch.utils.data import DataLoader

from proxylessnas import specialise
from proxylessnas.config import MeasureSettings

SIZE, CELL = 48, 4  # pixels of an image, and of a cell of the detector's map


@dataclass(frozen=True)
class Task:
    """model: as anybody would write it. example: one input and its target."""

    model: Callable[[], nn.Module]
    example: Callable[[torch.Generator], tuple[Any, Any]]
    loss: Callable[[Any, Any], Tensor]
    collate: Any = None
    correct: Callable[[Any, Any], Tensor] | None = None


def conv(channels: int, out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.SiLU()
    )


# --- images: is there a disc or a square? ---


def shape(generator: torch.Generator, kind: int) -> tuple[Tensor, Tensor, Tensor]:
    """An image [1, SIZE, SIZE], the pixels of the shape in it, and its box."""
    size = float(torch.randint(8, 17, (1,), generator=generator))
    x, y = (torch.rand(2, generator=generator) * (SIZE - 2 * size) + size).tolist()
    column = torch.arange(SIZE)[None] - x
    row = torch.arange(SIZE)[:, None] - y
    distance = (column**2 + row**2).sqrt() if kind else torch.maximum(column.abs(), row.abs())
    inside = distance < size / 2
    noise = 0.5 * torch.randn(SIZE, SIZE, generator=generator)
    return (inside + noise)[None], inside.long(), torch.tensor([x, y, size, size])


def drawn(generator: torch.Generator) -> tuple[Tensor, int, Tensor, Tensor]:
    kind = int(torch.randint(2, (1,), generator=generator))
    image, mask, box = shape(generator, kind)
    return image, kind, mask, box


def masked(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    image, _, mask, _ = drawn(generator)
    return image, mask


def classifier() -> nn.Module:
    body = (conv(1, 24, 2), conv(24, 48, 2), conv(48, 64, 2), conv(64, 64))
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2))


# --- segmentation: which pixels? ---


class UNet(nn.Module):
    """Down, up, and a skip between."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first, self.down = conv(1, width), conv(width, 2 * width, 2)
        self.deep, self.up = conv(2 * width, 2 * width), nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.last = nn.Sequential(conv(2 * width, width), nn.Conv2d(width, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.first(x)
        deep = self.up(self.deep(self.down(shallow)))
        out: Tensor = self.last(torch.cat((deep, shallow), 1))
        return out


# --- detection: a list of images, a list of targets ---


class Detector(nn.Module):
    """A map of scores a class and of boxes, of every cell; one tower for both of them."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(1, width, 2), conv(width, 2 * width, 2))
        self.tower = nn.Sequential(conv(2 * width, width), conv(width, width))
        self.score, self.box = nn.Conv2d(width, 2, 1), nn.Conv2d(width, 4, 1)

    def forward(self, images: list[Tensor]) -> dict[str, Tensor]:
        x = self.tower(self.body(torch.stack(images)))
        return {"scores": self.score(x), "boxes": self.box(x)}


def detection_loss(output: dict[str, Tensor], targets: list[dict[str, Tensor]]) -> Tensor:
    """Of the cells at the boxes' centres, and of the scores everywhere."""
    wanted, losses = torch.zeros_like(output["scores"]), []
    for i, target in enumerate(targets):
        for box, label in zip(target["boxes"], target["labels"], strict=True):
            x, y = (box[:2] / CELL).long().tolist()
            wanted[i, label, y, x] = 1
            losses.append(l1_loss(output["boxes"][i, :, y, x], box / SIZE))
    scores = binary_cross_entropy_with_logits(output["scores"], wanted, reduction="sum")
    return scores / len(targets) + torch.stack(losses).mean()


def boxed(generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    image, kind, _, box = drawn(generator)
    return image, {"boxes": box[None], "labels": torch.tensor([kind])}


def lists(batch: list[Any]) -> tuple[list[Any], list[Any]]:
    images, targets = zip(*batch, strict=True)
    return list(images), list(targets)


# --- tabular: numbers and a category ---


class Regressor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kind = nn.Embedding(5, 8)
        self.layers = nn.Sequential(
            *(nn.Linear(14, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 1)),
        )

    def forward(self, numbers: Tensor, kind: Tensor) -> Tensor:
        out: Tensor = self.layers(torch.cat((numbers, self.kind(kind)), 1))
        return out[:, 0]


def row(generator: torch.Generator) -> tuple[tuple[Tensor, Tensor], Tensor]:
    numbers, kind = torch.randn(6, generator=generator), torch.randint(5, (), generator=generator)
    return (numbers, kind), numbers[kind] * numbers[5]


# --- text: which of two words comes more often? ---


class Reader(nn.Module):
    def __init__(self, width: int = 64, words: int = 30, places: int = 24) -> None:
        super().__init__()
        self.word, self.place = nn.Embedding(words, width), nn.Embedding(places, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
        self.encode, self.answer = nn.TransformerEncoder(layer, 2), nn.Linear(width, 2)

    def forward(self, text: Tensor) -> Tensor:
        x = self.word(text) + self.place(torch.arange(text.shape[1], device=text.device))
        out: Tensor = self.answer(self.encode(x).mean(1))
        return out


def sentence(generator: torch.Generator) -> tuple[Tensor, int]:
    rarity = torch.randint(1, 9, (1,), generator=generator)
    text = torch.randint(30, (24,), generator=generator) // rarity
    return text, int((text == 1).sum() > (text == 2).sum())


def labels_right(output: Tensor, target: Tensor) -> Tensor:
    return (output.argmax(1) == target).sum()


def pixels_right(output: Tensor, target: Tensor) -> Tensor:
    return (output.argmax(1) == target).float().mean((1, 2)).sum()


TASKS = {
    "images": Task(classifier, lambda g: drawn(g)[:2], cross_entropy, correct=labels_right),
    "segmentation": Task(UNet, masked, cross_entropy, correct=pixels_right),
    "detection": Task(Detector, boxed, detection_loss, collate=lists),
    "tabular": Task(Regressor, row, mse_loss),
    "text": Task(Reader, sentence, cross_entropy, correct=labels_right),
}


def learn(model: nn.Module, task: Task, batches: DataLoader[Any], epochs: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(epochs):
        for inputs, target in batches:
            output = model(*inputs) if isinstance(model, Regressor) else model(inputs)
            optimizer.zero_grad()
            task.loss(output, target).backward()
            optimizer.step()


def run(name: str, quick: bool) -> None:
    task = TASKS[name]
    torch.manual_seed(0)
    sizes = (48, 16) if quick else (1024, 256)

    def loader(count: int, seed: int) -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(seed)
        examples: Any = [task.example(generator) for _ in range(count)]
        return DataLoader(examples, 32, shuffle=True, collate_fn=task.collate)

    train, valid = loader(sizes[0], 1), loader(sizes[1], 2)
    model = task.model()
    learn(model, task, train, epochs=1 if quick else 6)

    first, _ = task.example(torch.Generator().manual_seed(3))
    alone: Any = train.collate_fn([(first, 0)])[0]  # a batch of one
    result = specialise(
        model,
        train=train,
        valid=valid,
        loss=task.loss,
        correct=task.correct,
        example_inputs=tuple(alone) if name == "tabular" else (alone,),
        target_latency="0.7x",
        measure=MeasureSettings(network_rounds=3 if quick else 20, runs=3),
        quiet=quick,
    )
    before = result.summary["score_before_finetuning"]
    result.finetune(epochs=1 if quick else 3)
    network = result.derive()  # the model's own class, with smaller layers
    parameters = [sum(p.numel() for p in m.parameters()) for m in (model, network)]
    print(
        f"{name}: {result.measured_ms / result.around.model_ms:.2f} of the latency, "
        f"{parameters[1] / parameters[0]:.2f} of the parameters; validation score "
        f"{before:.4f}, fine-tuned {result.summary['score']:.4f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", help=f"of {', '.join(TASKS)}; all of them by default")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    if unknown := set(args.tasks) - set(TASKS):
        parser.error(f"there is no task {', '.join(unknown)}; there are {', '.join(TASKS)}")
    for name in args.tasks or TASKS:
        run(name, args.quick)


if __name__ == "__main__":
    main()
