"""Forgetting in depth for detectors: queries on forgotten objects get the states of queries on background."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.loss.loss_for_object_detection import box_iou
from transformers.utils import logging

from ...compat import bare, reference_model, unwrapped
from ...errors import InvalidInputError
from ..base import LossArguments, Objective, ObjectiveOutput, Task
from ..depth import chosen_blocks, no_depth
from ..losses import DepthTarget, GlobalMean, identity
from ..states import CapturedStates, block_paths, captured_states
from .by_boxes import match_by_boxes
from .matching import DetectionCriterion
from .scoring import corners_of

logger = logging.get_logger(__name__)

PROPOSALS = "proposals"  # among the outputs of the objective: boxes of the encoder's proposals
OVERLAP = 0.5  # with an object: the box of a query that sees it


class QueryDepthObjective(Objective):
    r"""Adds terms on the states of the queries: those on forgotten objects go to the background, kept ones stay.

    A class head that no longer answers with a category leaves its traces in the decoder: a new head on a few boxes
    brings the category back. To a detector that never saw its labels, its objects are background. The terms train
    towards such states, behind every layer of the decoder:

    $$w \cdot \operatorname{mean}_{l, q} \frac{1}{d} \left\| n(s_l(q)) - n(s_l^0(b(q))) \right\|^2
    + w_r \cdot \operatorname{mean}_{l, o} \frac{1}{d} \left\| n(s_l(q_o)) - n(s_l^0(q_o^0)) \right\|^2$$

    s_l and s_l⁰ are the states of the model that trains and of the model before the task, of width d, and n is a
    layer norm without weights. q are the queries whose box is matched with an object to forget, or overlaps one (IoU)
    by at least 0.5. b(q) is drawn anew at each step from the queries of the same image that the model before the task
    puts on background: neither matched with an object nor on one. q_o and q_o⁰ are the queries that are matched with a
    kept object o. All are matched by their boxes alone. No gradient reaches the targets.

    RT-DETR and D-FINE choose their queries among the encoder's tokens by class scores, which no other loss lowers.
    There tokens that are proposed on a forgotten object get the states of tokens of the same image that were not
    proposed; this term also weighs w.

    An image may be in both halves; both count. Each step costs one more forward, without gradient. Under DDP sums are
    divided by the mean number of queries over all processes.

    Args:
        objective ([`Objective`]):
            The objective that the terms are added to; its outputs hold `logits` and `pred_boxes`. It should not train
            the boxes of forgotten objects.
        criterion ([`DetectionCriterion`]):
            The detector's matching.
        weight (`float`):
            w.
        retain_weight (`float`, *optional*, defaults to 0):
            w_r.
        adapter (`str`, *optional*, defaults to `"default"`):
            The adapter that trains.
        target (`"sample"` or `"mean"`, *optional*, defaults to `"sample"`):
            `"sample"`: the state of one query on background. `"mean"`: the mean state of those of the image.
        blocks (`Sequence[str]`, *optional*):
            Paths of blocks whose output ends with the queries; by default [`query_blocks`].
    """

    def __init__(
        self,
        objective: Objective,
        criterion: DetectionCriterion,
        weight: float,
        retain_weight: float = 0.0,
        adapter: str = "default",
        target: DepthTarget = "sample",
        blocks: Sequence[str] | None = None,
    ):
        self.objective = objective
        self.scoring = objective.scoring
        self.criterion = criterion
        self.weight = weight
        self.retain_weight = retain_weight
        self.adapter = adapter
        self.target: DepthTarget = target
        self.blocks = list(blocks) if blocks is not None else None

    def prepare(
        self, model: nn.Module, batches: Callable[[], Iterable[dict[str, Any]]], global_sum: GlobalMean = identity
    ) -> None:
        self.objective.prepare(model, batches, global_sum)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], global_mean: GlobalMean = identity
    ) -> ObjectiveOutput:
        if self.blocks is None:
            self.blocks = query_blocks(model)
        own = unwrapped(model)
        paths = [*self.blocks, *_proposal_paths(own)]
        with captured_states(model, paths) as captured:
            output = self.objective.training_step(model, inputs, global_mean)
        # Without the wrapper for several processes, which would expect a backward pass, and after the other forward:
        # autocast caches its casts, and a cast that was made without gradient has none.
        labels = inputs["labels"]
        with reference_model(own, self.adapter), captured_states(own, paths) as captured_before:
            boxes_before = own(**{name: value for name, value in inputs.items() if name != "labels"})["pred_boxes"]
        boxes = output.outputs["pred_boxes"]
        with torch.autocast(boxes.device.type, enabled=False):
            now = self._seen(boxes.detach(), _ends(captured, self.blocks, boxes.shape[1]), labels)
            before = self._seen(boxes_before, _ends(captured_before, self.blocks, boxes.shape[1]), labels)
            gone, background = self._background(now, before)
            kept, kept_before = _of_same_objects(now, before)
            depth = _mean_distance(now.of(gone), background, global_mean)
            stays = _mean_distance(now.of(kept), before.of(kept_before), global_mean)
            metrics = {"depth": depth, "depth_retain": stays}
            if PROPOSALS in output.outputs:
                (now_tokens, now_chosen), (tokens, chosen) = (
                    _proposal_tokens(found, paths[-2:], boxes.shape[1]) for found in (captured, captured_before)
                )
                own_tokens = now_tokens.gather(1, now_chosen[..., None].expand(-1, -1, tokens.shape[2]))
                proposed = self._seen(output.outputs[PROPOSALS].detach(), [own_tokens], labels)
                gone, others = _to_other_tokens(proposed, tokens, chosen)
                metrics["depth_proposals"] = _mean_distance(proposed.of(gone), [others], global_mean)
        forgetting = depth + metrics.get("depth_proposals", 0.0)
        output.loss = output.loss + self.weight * forgetting + self.retain_weight * stays
        output.metrics |= {name: value.detach() for name, value in metrics.items()}
        return output

    def evaluation_step(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        return self.objective.evaluation_step(model, inputs)

    def _seen(self, boxes: Tensor, states: Sequence[Tensor], labels: Sequence[dict[str, Tensor]]) -> _Queries:
        """What each query of a forward sees."""
        found = _Queries(
            [state.flatten(0, 1) for state in states],
            on_forgotten=torch.zeros(boxes.shape[:2], dtype=torch.bool),
            on_background=torch.zeros(boxes.shape[:2], dtype=torch.bool),
            kept_object=torch.full(boxes.shape[:2], -1),
        )
        pairs = match_by_boxes(self.criterion, boxes, labels)
        first = 0
        for image, (label, (queries, objects)) in enumerate(zip(labels, pairs, strict=True)):
            forget = label["forget"].cpu()
            overlaps, _ = box_iou(corners_of(boxes[image].float()), corners_of(label["boxes"].float()))
            on = (overlaps >= OVERLAP).cpu()
            found.on_forgotten[image] = on[:, forget].any(1)
            found.on_forgotten[image, queries] = forget[objects]
            found.on_background[image] = ~on.any(1)
            found.on_background[image, queries] = False
            found.kept_object[image, queries] = torch.where(forget[objects], -1, objects + first)
            first += len(forget)
        return found

    def _background(self, now: _Queries, before: _Queries) -> tuple[Tensor, list[Tensor]]:
        """The queries on forgotten objects in images with background, and a target for each behind every block."""
        pool = before.on_background.float()
        gone = (now.on_forgotten & before.on_background.any(1, keepdim=True)).flatten().nonzero().squeeze(1)
        if not len(gone):
            return gone, before.of(gone)
        images, size = gone // pool.shape[1], pool.shape[1]
        if self.target == "sample":
            return gone, before.of(images * size + torch.multinomial(pool[images], 1).squeeze(1))
        share = (pool / pool.sum(1, keepdim=True).clamp(min=1)).to(before.states[0].device)
        means = [torch.einsum("bq,bqd->bd", share, states.unflatten(0, pool.shape)) for states in before.states]
        return gone, [mean[images.to(mean.device)] for mean in means]


@dataclass
class _Queries:
    """The queries of a forward.

    Attributes:
        states (`list[torch.Tensor]`):
            Behind every block, layer-normed, shape `(B · Q, width)`.
        on_forgotten (`torch.Tensor`):
            Whether a query is on an object to forget: bool, shape `(B, Q)`, on the CPU like the next ones.
        on_background (`torch.Tensor`):
            Whether it is on background.
        kept_object (`torch.Tensor`):
            Number of the kept object in the batch that it is matched with, or -1.
    """

    states: list[Tensor]
    on_forgotten: Tensor
    on_background: Tensor
    kept_object: Tensor

    def of(self, queries: Tensor) -> list[Tensor]:
        """The states of some queries behind every block."""
        return [states[queries.to(states.device)] for states in self.states]


def query_blocks(model: nn.Module) -> list[str]:
    """Returns the paths of the blocks whose output ends with the queries: of the decoder, or all of a YOLOS.

    Raises:
        NoFFNFoundError: If no block is found.
    """
    paths = block_paths(model)
    return [path for path in paths if "decoder" in path.split(".")] or paths


def _proposal_paths(model: nn.Module) -> list[str]:
    """Paths of the encoder's tokens and of their class scores, where queries are chosen by them (RT-DETR, D-FINE)."""
    scores = [path for path, _ in bare(model).named_modules() if path.rpartition(".")[2] == "enc_score_head"]
    return [path.replace("enc_score_head", "enc_output") for path in scores] + scores


def _proposal_tokens(captured: CapturedStates, paths: Sequence[str], size: int) -> tuple[Tensor, Tensor]:
    """The encoder's tokens, layer-normed, `(B, N, width)`, and which of them the queries begin with, `(B, Q)`."""
    tokens, scores = (captured.outputs[path] for path in paths)
    return _normed(tokens), scores.max(-1).values.topk(size, dim=1).indices


def _to_other_tokens(proposed: _Queries, tokens: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """The proposals on forgotten objects, and for each a token of its image that was not proposed before the task."""
    gone = proposed.on_forgotten.flatten().nonzero().squeeze(1)
    others = torch.ones(tokens.shape[:2]).scatter_(1, chosen.cpu(), 0.0)
    if not others.any():  # every token is a query
        gone = gone[:0]
    images = gone // chosen.shape[1]
    drawn = torch.multinomial(others[images], 1).squeeze(1) if len(gone) else gone
    return gone, tokens.flatten(0, 1)[(images * tokens.shape[1] + drawn).to(tokens.device)]


def _ends(captured: CapturedStates, paths: Sequence[str], size: int) -> list[Tensor]:
    """The states of the queries behind every block, layer-normed, `(B, Q, width)`."""
    return [_normed(captured.outputs[path][:, -size:]) for path in paths]


def _normed(states: Tensor) -> Tensor:
    return F.layer_norm(states.float(), states.shape[-1:])


def _of_same_objects(now: _Queries, before: _Queries) -> tuple[Tensor, Tensor]:
    """The queries of both forwards that are matched with the same kept objects."""
    mine, theirs = now.kept_object.flatten(), before.kept_object.flatten()
    first, second = ((mine[:, None] == theirs) & (mine[:, None] >= 0)).nonzero().unbind(1)
    return first, second


def _mean_distance(states: Sequence[Tensor], targets: Sequence[Tensor], global_mean: GlobalMean) -> Tensor:
    """The squared distance by dimension: mean over blocks, sum over queries by their mean number over processes."""
    total = torch.stack([(one - other).square().mean(1).sum() for one, other in zip(states, targets, strict=True)])
    return total.mean() / global_mean(torch.tensor(float(len(states[0])), device=total.device)).clamp(min=1)


def with_query_depth(
    objective: Objective, criterion: DetectionCriterion, model: nn.Module, args: LossArguments, task: Task
) -> Objective:
    """Wraps a detector's objective in a [`QueryDepthObjective`] if its weight is not 0.

    Raises:
        InvalidInputError: If the weight is not 0 and the model's own weights train instead of an adapter, no block is
            found, `depth_blocks` matches none, or an option is for classifiers alone.
    """
    if not args.depth_weight:
        return objective
    if task.adapter is None:
        raise no_depth(args.depth_weight, "the model's own weights train, and the earlier model is gone")
    if args.depth_target == "transport":
        fix = "Leave it out: a query goes to the background of its own image."
        raise InvalidInputError("depth_target", args.depth_target, "'sample' or 'mean' with a detector", fix)
    if args.depth_radius:
        raise InvalidInputError("depth_radius", args.depth_radius, "0 with a detector", "Leave it out.")
    decoder = query_blocks(model)
    adapted = [path for path, module in bare(model).named_modules() if isinstance(module, BaseTunerLayer)]
    if not all(path.startswith(tuple(f"{block}." for block in decoder)) for path in adapted):
        logger.warning(
            "Forgetting in depth may break the categories to keep if the adapter also acts in front of the decoder "
            "(docs/audit.md): use GSLoraConfig(block_pattern='decoder'), in the examples --block_pattern decoder."
        )
    blocks = chosen_blocks(decoder, args.depth_blocks)
    weights = args.depth_weight, args.depth_retain_weight
    return QueryDepthObjective(objective, criterion, *weights, task.adapter, args.depth_target, blocks)
