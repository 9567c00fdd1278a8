"""Trains the demo model on the CPU: python -m saccade_server.demo.train --out DIR

Everything follows from the seed: the initial weights and, per step, the batch. A checkpoint holds
the whole state, so an interrupted run continues where it stopped and ends with the same weights.

The two halves of a batch run in two threads which use one core each and meet once a step. The usual
way, all cores inside every matrix product, meets a thousand times a step: on a machine that does
anything else as well it is much slower.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm  # type: ignore[import-untyped]
from transformers import LlavaForConditionalGeneration

from .batches import IGNORED, Batch, BatchMaker
from .build import IMAGE, LAYERS, PAD, SPECIAL_TOKENS, build_model, build_processor
from .pointing import ATTENTION_NAME, register
from .sinks import plant_first_token, sink_loss

WARM_UP_STEPS: Final = 39
DECAY_SHARE: Final = 0.6
PATCH_WEIGHT: Final = 0.5
SINK_WEIGHT: Final = 0.05
LOOK_WEIGHT: Final = 0.2
CHECKPOINT: Final = "checkpoint.pt"
SHARDS: Final = 2


@dataclass(frozen=True)
class Settings:
    """What decides the result of a run."""

    steps: int
    seed: int = 0
    batch_size: int = 12
    muon_rate: float = 0.004
    adam_rate: float = 0.0015
    lone_steps: int = 60
    clear_steps: int = 200


class Trainer:
    """The model, its optimisers and its progress."""

    def __init__(self, settings: Settings, out: Path) -> None:
        torch.manual_seed(settings.seed)
        self.settings = settings
        self.out = out
        self.step = 0
        self.seconds = 0.0
        self.processor = build_processor()
        self.model = build_model()
        self.model.train()
        register()
        self.model.set_attn_implementation({"text_config": ATTENTION_NAME})
        plant_first_token(self.model.lm_head.weight)
        self.parameters = list(self.model.parameters())
        self.optimizers = _build_optimizers(self.model, settings)
        self.batches = BatchMaker(
            self.processor,
            seed=settings.seed,
            size=settings.batch_size // SHARDS,
            lone_steps=settings.lone_steps,
            clear_steps=settings.clear_steps,
        )
        self.pool = ThreadPoolExecutor(SHARDS, initializer=torch.set_num_threads, initargs=(1,))

    def run(self, checkpoint_every: int) -> None:
        with tqdm(
            total=self.settings.steps, initial=self.step, desc="train", mininterval=10
        ) as progress:
            while self.step < self.settings.steps:
                began = time.perf_counter()
                losses = self._train_step()
                self.seconds += time.perf_counter() - began
                self.step += 1
                progress.update()
                if self.step % 20 == 0:
                    progress.set_postfix({name: f"{value:.4f}" for name, value in losses.items()})
                if self.step % checkpoint_every == 0:
                    self.save()
        self.save()

    def save(self) -> None:
        """Write the checkpoint in one move, so that nobody ever reads half of it."""
        self.out.mkdir(parents=True, exist_ok=True)
        partial = self.out / f"{CHECKPOINT}.partial"
        torch.save(self._state(), partial)
        partial.replace(self.out / CHECKPOINT)

    def resume(self) -> None:
        """Continue from the checkpoint in the output folder, if there is one."""
        path = self.out / CHECKPOINT
        if not path.exists():
            return
        state = torch.load(path, weights_only=True)
        self.step, self.seconds = state["step"], state["seconds"]
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }

    def _train_step(self) -> dict[str, float]:
        """One update; returns the losses, averaged over the shards."""
        shards = list(self.pool.map(self._gradients, range(SHARDS)))
        for parameter, *gradients in zip(
            self.parameters, *(gradients for gradients, _ in shards), strict=True
        ):
            parameter.grad = torch.stack(gradients).mean(0)
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        scale = learning_rate_scale(self.step, self.settings.steps)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = scale * group["peak"]
        list(self.pool.map(lambda optimizer: optimizer.step(), self.optimizers))
        return {name: sum(losses[name] for _, losses in shards) / SHARDS for name in shards[0][1]}

    def _gradients(self, shard: int) -> tuple[tuple[Tensor, ...], dict[str, float]]:
        # What each patch holds matters until the model refines its answers.
        patch_weight = PATCH_WEIGHT * min(
            1.0, (1.0 - self.step / self.settings.steps) / DECAY_SHARE
        )
        losses = self._losses(self.batches.make(self.step, shard))
        loss = losses["answer"] + SINK_WEIGHT * losses["sink"] + patch_weight * losses["patch"]
        loss = loss + LOOK_WEIGHT * losses["look"]
        gradients = torch.autograd.grad(
            loss, self.parameters, allow_unused=True, materialize_grads=True
        )
        return gradients, {name: value.item() for name, value in losses.items()}

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        rows = len(batch.input_ids)
        # [V, P, width]
        features = torch.stack(
            list(self.model.get_image_features(pixel_values=batch.pixel_values).pooler_output)
        )
        is_image = batch.input_ids == SPECIAL_TOKENS.index(IMAGE)
        embeddings = self.model.get_input_embeddings()(batch.input_ids)
        output = self.model.model.language_model(
            inputs_embeds=embeddings.masked_scatter(is_image[..., None], features[:rows]),
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            use_cache=False,
            pointers=batch.pointers,
            output_hidden_states=list(range(2, LAYERS - 1)),
        )
        supervised = batch.labels != IGNORED
        logits = self.model.lm_head(output.last_hidden_state[supervised])
        is_padding = batch.input_ids == SPECIAL_TOKENS.index(PAD)
        entering = tuple(residual for residual in output.hidden_states if residual is not None)
        return {
            "answer": functional.cross_entropy(logits, batch.labels[supervised]),
            "patch": self._patch_loss(features, batch.patch_words),
            "look": batch.pointers.loss(),
            "sink": sink_loss(entering, is_image, is_padding, batch.is_background[:rows]),
        }

    def _patch_loss(self, features: Tensor, words: Tensor) -> Tensor:
        """Cross-entropy between what image tokens say through the text model's head and `words`.

        It teaches the vision tower to speak the text model's language, which in large models is
        what contrastive pre-training is for. [V, P, width] and [V, P, vocabulary] -> scalar.
        """
        logits = self.model.lm_head(self.model.model.language_model.norm(features))
        named: Tensor = words * logits.log_softmax(-1)
        return -named.sum() / words.sum()


def learning_rate_scale(step: int, steps: int) -> float:
    """Linear warm-up, plateau, linear decay to nothing."""
    left = 1.0 - step / steps
    return min(1.0, (step + 1) / WARM_UP_STEPS, max(0.01, left / DECAY_SHARE))


def _build_optimizers(
    model: LlavaForConditionalGeneration, settings: Settings
) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, one optimiser per thread, and AdamW for everything else."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in n]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    muons: list[torch.optim.Optimizer] = [
        torch.optim.Muon(
            [{"params": matrices[thread::SHARDS], "peak": settings.muon_rate}],
            lr=settings.muon_rate,
            weight_decay=0.05,
            adjust_lr_fn="match_rms_adamw",
        )
        for thread in range(SHARDS)
    ]
    adam = torch.optim.AdamW(
        [{"params": others, "peak": settings.adam_rate}],
        lr=settings.adam_rate,
        betas=(0.9, 0.98),
        weight_decay=0.01,
        fused=True,
    )
    return [*muons, adam]


def export(model: LlavaForConditionalGeneration, processor: Any, folder: Path) -> None:
    """Write a folder which loads like any LLaVA of the hub, weights in bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    processor.save_pretrained(folder)
    # Tied weights are one tensor in the model, so they stay tied in the file.
    nn.Module.to(model, torch.bfloat16)
    model.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder of the checkpoint and, in model/, the result",
    )
    parser.add_argument("--steps", type=int, default=2320)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint-every", type=int, default=50)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    trainer = Trainer(Settings(steps=arguments.steps, seed=arguments.seed), arguments.out)
    trainer.resume()
    trainer.run(arguments.checkpoint_every)
    export(trainer.model, trainer.processor, arguments.out / "model")
    print(f"{trainer.step} steps in {trainer.seconds:.0f} s")


if __name__ == "__main__":
    main()
