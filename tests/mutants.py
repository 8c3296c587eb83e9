"""Do the tests fail when the code is wrong? ``python tests/mutants.py [replay …]`` changes one thing at a time.

Words are parts of file names: without any, every mutant is tried.

Every mutant is a copy of the package with one expression replaced; its tests must go red. Prints a line for each
and returns 1 if one survives. Not part of the suite: it runs parts of it some hundred times.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
(
    MEMORY,
    COMPOSED,
    LAYER,
    CONTROLLER,
    FUSED,
    STEPS,
    PARTS,
    COMPONENTS,
    RELEASED,
    MIXTURE,
    RESIZING,
    DIAGNOSTICS,
) = (
    f"policies/heads/{name}.py"
    for name in (
        "program_memory",
        "composed",
        "neurocoder",
        "controller",
        "fused",
        "fused_steps",
        "fused_parts",
        "fused_components",
        "fused_released",
        "mixture",
        "resizing",
        "diagnostics",
    )
)

VTRACE, A3C, HOGWILD, ROLLOUT, WORKER, SUPERVISE, PROCESSES, PLAYER = (
    f"agents/{name}.py"
    for name in ("vtrace", "a3c", "hogwild", "rollout", "worker", "supervisor", "processes", "player")
)
PROBES, IMPORTANCE, CONTINUAL = (f"agents/{name}.py" for name in ("probes", "importance", "continual"))
SIDE_BY_SIDE = "policies/heads/side_by_side.py"
CALIBRATION, PIXELS, IMAGE_ENCODER = (
    f"policies/{name}.py" for name in ("calibration", "pixels", "image_encoder")
)
SB3_LAYERS, SB3_ACTOR_CRITIC = (f"policies/sb3/{name}.py" for name in ("layers", "actor_critic"))
BLOCKS, NTM_CORE, EVALUATOR = "policies/blocks.py", "policies/ntm/core.py", "runs/evaluator.py"
SB3_ENVS = "envs/sb3.py"
RECORDER, FRAMES, EMULATION, PROGRAMS, EPISODE, PICKS, PAGE = (
    f"runs/replay/{name}.py"
    for name in ("recorder", "frames", "emulation", "programs", "episode", "picks", "page")
)
VIEWER, VIEWER_INDEX = "runs/viewer/server.py", "runs/viewer/index.py"
TRAININGS, SEQUENCE_TESTS = "runs/reproduce/trainings.py", "runs/reproduce/sequence_tests.py"
SORTED, CORES, TAPE = "runs/reproduce/sorted_memory.py", "policies/cores.py", "policies/tape.py"
REPLAY, REPLAY_PROGRAMS, SERVER = (
    f"runs/test_{name}.py" for name in ("replay", "replay_programs", "viewer_server")
)
SUPERVISOR = "agents/test_supervisor.py"
EXACT = "runs/test_training.py"


class Mutant(NamedTuple):
    file: str
    old: str
    new: str
    tests: str = "neurocoder"
    """Of tests/policies, or a file below tests/."""


MUTANTS = [
    Mutant(MEMORY, '"bri,br,bro->bio", u_BRI, sigma_BR', '"bri,br,bro->bio", u_BRI, -sigma_BR'),
    Mutant(MEMORY, "return task + coefficient * orthogonal", "return task - coefficient * orthogonal"),
    Mutant(MEMORY, "(gram - identity)", "(gram + identity)"),
    Mutant(MEMORY, "        offset = n_slots - width", "        offset = 0"),
    Mutant(MEMORY, "(max(0, slots - in_features) + ", "("),
    Mutant(MEMORY, ".flip(-1).cumsum(-1).flip(-1)", ".cumsum(-1)"),
    Mutant(
        MEMORY,
        "query = unit(query_BHK)\n    key",
        "query = query_BHK\n    key",
    ),
    Mutant(MEMORY, "key = unit(key_PK)", "key = key_PK"),
    Mutant(MEMORY, "cosine = sharpness * cosine", "pass"),
    Mutant(MEMORY, "torch.maximum(previous_BHP, weights_BHP)", "weights_BHP"),
    Mutant(MEMORY, "argsort(dim=-1, stable=True)", "argsort(dim=-1, stable=True, descending=True)"),
    Mutant(MEMORY, "order[..., :least_used]", "order[..., : least_used + 1]"),
    Mutant(MEMORY, "(usage_BHP.amax(dim=-1, keepdim=True) - usage_BHP)", "(1 - usage_BHP)"),
    Mutant(MEMORY, "(1 - share) * least_used_BHP", "share * least_used_BHP"),
    Mutant(MEMORY, "(gate_B * smallest_sigma_B)", "(smallest_sigma_B)"),
    Mutant(MEMORY, "(sigma_BR * projection_BR)", "(projection_BR)"),
    Mutant(MEMORY, "rank / openness_P.detach().square()", "rank", "resizing"),
    Mutant(MEMORY, "        chosen = chosen * openness_P\n", "        pass\n", "resizing"),
    Mutant(
        MEMORY,
        "return raw_P + (raw_P.clamp_min(0) - raw_P).detach()",
        "return raw_P.clamp_min(0)",
        "resizing",
    ),
    Mutant(LAYER, "self.key_v(memory_v), self.learned", "self.key_v(memory_v).detach(), self.learned"),
    Mutant(CONTROLLER, "torch.sigmoid(parts[3]) * cell + fresh", "cell + fresh"),
    Mutant(CONTROLLER, "preactivation = preactivation + self.recurrent(hidden)", "pass"),
    Mutant(LAYER, "used = pm.usage(used, weights)", "pass"),
    Mutant(
        LAYER,
        "return trace.sigma[..., -1]",
        "return trace.sigma[..., 0]",
    ),
    Mutant(LAYER, "self.gated = not (convex and attention_steps == 1)", "self.gated = True"),
    Mutant(LAYER, "if slots < least_used:", "if False:"),
    Mutant(COMPOSED, "return self.orthogonality * self.orthogonal_loss()", "return self.orthogonal_loss()"),
    Mutant(LAYER, "self.openness.new_zeros(n_slots)", "self.openness.new_ones(n_slots)", "resizing"),
    Mutant(COMPOSED, "memory[: self.frozen_slots].detach()", "memory[: self.frozen_slots]", "resizing"),
    Mutant(
        LAYER,
        "append_rows(parameter, rows, optimizer, forget",
        "append_rows(parameter, rows, None, forget",
        "resizing",
    ),
    Mutant(RESIZING, "free = directions[rank:]", "free = directions", "resizing"),
    Mutant(RESIZING, "lambda state: state[index]", "lambda state: state[: len(index)]", "resizing"),
    Mutant(COMPONENTS, "d_logits -= flow_share_MHB.unsqueeze(1)", "pass", "fused"),
    Mutant(COMPONENTS, "if rising else d_sigma.cumsum(0)", "if rising else d_sigma", "fused"),
    Mutant(COMPONENTS, "d_sigma.flip(0).cumsum(0).flip(0) if rising", "d_sigma.cumsum(0) if rising", "fused"),
    Mutant(COMPONENTS, "d_sigma[0 if rising else -1]", "d_sigma[-1]", "fused"),
    Mutant(COMPONENTS, "d_sigma[0 if rising else -1]", "d_sigma[0]", "fused"),
    Mutant(
        FUSED, "d_gate.append(back.flow_MHB * (1 - gate))", "d_gate.append(back.flow_MHB * gate)", "fused"
    ),
    Mutant(FUSED, "back.flow_MHB * inverse)", "back.flow_MHB * components.share_MHB)", "fused"),
    Mutant(RELEASED, ".mul_(-key_size / LOG2_E)", ".mul_(key_size / LOG2_E)", "fused"),
    Mutant(RELEASED, "d_key += _slope(d_key_norm, key_norm).unsqueeze(2) * key", "pass", "fused"),
    Mutant(RELEASED, "torch.where(norm > 0, d_norm / norm, 0)", "d_norm / norm", "fused"),
    Mutant(RELEASED, "d_value += back.d_value_s_P", "d_value = back.d_value_s_P", "fused"),
    Mutant(RELEASED, "torch.full_like(key_norm_MP, saved.offset)", "torch.zeros_like(key_norm_MP)", "fused"),
    Mutant(PARTS, "value=-1).mul_(inverse)", "value=-1)", "fused"),
    Mutant(FUSED, ".addmm_(d_key_u, w.key_u_weight_KI)", "", "fused"),
    Mutant(
        FUSED,
        "parts += [w.residual_IO.t(), w.gate_weight_1I]",
        "parts += [w.residual_IO.t(), -w.gate_weight_1I]",
        "fused",
    ),
    Mutant(FUSED, "biases = [w.input_bias_C,", "biases = [-w.input_bias_C,", "fused"),
    Mutant(FUSED, "d_controller.t(), w.input_weight_CI", "-d_controller.t(), w.input_weight_CI", "fused"),
    Mutant(PARTS, "left_MK.t()).t().contiguous()", "left_MK.t())", "fused"),
    Mutant(PARTS, "left_MK.t()).t().contiguous()", "left_MK.t()).t()", "fused"),
    Mutant(PARTS, "return left_MK * right_KN", "return left_MK + right_KN", "fused"),
    Mutant(LAYER, "if self.attention_steps > 1 or not self._plain:", "if self.attention_steps > 1:", "fused"),
    Mutant(TAPE, "if self._head is None or self._length == 1:", "if self._head is None:", "tape"),
    Mutant(TAPE, "if self._head is None or self._length == 1:", "if True:", "tape"),
    Mutant(
        COMPONENTS,
        "gain[2].reshape(-1)",
        "gain[0].reshape(-1)",
        "fused",
    ),
    Mutant(PARTS, "class Scratch(threading.local)", "class Scratch", "fused"),
    Mutant(STEPS, "torch.maximum(usage[step - 2]", "torch.maximum(usage[0]", "fused"),
    Mutant(STEPS, "    if len(memory):", "    if False:", "fused"),
    Mutant(STEPS, "        d_usage -= mask\n", "", "fused"),
    Mutant(STEPS, "torch.ge(weights_of[step], used, out=mask)", "mask.zero_()", "fused"),
    Mutant(STEPS, ".sub_(d_lift)", "", "fused"),
    Mutant(STEPS, "d_lift.sum(1, keepdim=True) / mask", "d_lift.sum(1, keepdim=True) * 0 / mask", "fused"),
    Mutant(STEPS, "torch.gt(lifted, 0, out=mask)", "1", "fused"),
    Mutant(STEPS, "d_gate_part * gate * (1 - gate)", "d_gate_part * gate", "fused"),
    Mutant(STEPS, "d_sigma[-1] += d_smallest_B[rows]", "pass", "fused"),
    Mutant(STEPS, ".sub_(flow)", "", "fused"),
    Mutant(
        MIXTURE, "(weights_BP.t().unsqueeze(-1) * y_PBO).sum(0) + weights_BP @ bias_PO", "y_PBO.sum(0)", "nsm"
    ),
    Mutant(
        FUSED,
        "ctx.save_for_backward(x_BI, *weights)",
        "ctx.save_for_backward(x_BI, *(w if w is None else w.clone() for w in weights))",
        "fused",
    ),
    Mutant(DIAGNOSTICS, "mean = total / len(x_BF)", "mean = total", "diagnostics"),
    Mutant(
        DIAGNOSTICS,
        "_entropy(mean / mean.sum().clamp_min(1e-12)).exp() / len(mean)",
        "_entropy(mean / mean.sum().clamp_min(1e-12)).exp()",
        "diagnostics",
    ),
    Mutant(VTRACE, "c_TB = gae_lambda * ratio_TB", "c_TB = ratio_TB", "agents/test_vtrace.py"),
    Mutant(VTRACE, "clamp(max=max_ratio)", "clamp(max=1.0)", "agents/test_vtrace.py"),
    Mutant(VTRACE, "+ c_TB[t] * ahead_B", "+ ahead_B", "agents/test_vtrace.py"),
    Mutant(VTRACE, "+ gae_lambda * ahead_B)", "+ ahead_B)", "agents/test_vtrace.py"),
    Mutant(VTRACE, "~(terminated_TB | truncated_TB)", "~terminated_TB", "agents/test_vtrace.py"),
    Mutant(A3C, "advantage.std(correction=0)", "advantage.std()", "agents/test_a3c.py"),
    Mutant(
        A3C,
        "- config.entropy_coefficient * entropy",
        "+ config.entropy_coefficient * entropy",
        "agents/test_a3c.py",
    ),
    Mutant(
        HOGWILD,
        "mean.div_(len(workers))",
        "mean.div_(len(gradients))",
        "agents/test_hogwild.py",
    ),
    Mutant(HOGWILD, "0 < self.checkpoint_at <=", "0 < self.checkpoint_at <", SUPERVISOR),
    Mutant(WORKER, "board.steps[index] += config.steps_per_rollout", "board.steps[index] += 1", SUPERVISOR),
    Mutant(WORKER, "float(updates - self._updates_seen)", "0.0", SUPERVISOR),
    Mutant(WORKER, "        if played:\n", "        if True:\n", SUPERVISOR),
    Mutant(WORKER, "for _ in range(config.epochs):", "for _ in range(1):", SUPERVISOR),
    Mutant(A3C, "torch.minimum(ratio * adv", "torch.maximum(ratio * adv", "agents/test_a3c.py"),
    Mutant(
        A3C,
        "ratio.clamp(1 - clip_range, 1 + clip_range)",
        "ratio.clamp(max=1 + clip_range)",
        "agents/test_a3c.py",
    ),
    Mutant(
        A3C,
        "log_prob_TB - rollout.log_prob.to(device)",
        "rollout.log_prob.to(device) - log_prob_TB",
        "agents/test_a3c.py",
    ),
    Mutant(
        HOGWILD,
        "for worker in workers[1:]:",
        "for worker in range(1, len(workers)):",
        "agents/test_hogwild.py",
    ),
    Mutant(ROLLOUT, "part[index.to(part.device)]", "part[: len(index)]", "agents/test_a3c.py"),
    Mutant(ROLLOUT, "[len(self._steps)].copy_(self._seen)", "[0].copy_(self._seen)", "agents/test_a3c.py"),
    Mutant(
        ROLLOUT, "flatten(0, 1).index_select(0, index)", "flatten(0, 1)[: len(index)]", "agents/test_a3c.py"
    ),
    Mutant(PROCESSES, "processors() - workers", "processors()", "agents/test_processes.py"),
    Mutant(
        COMPOSED,
        "return self(x), self.forward_with_trace(x)[1]",
        "return self.forward_with_trace(x)",
        "heads",
    ),
    Mutant(
        NTM_CORE,
        "return *self(features, state, episode_start), trace",
        "return self.forward_with_trace(features, state, episode_start)",
        "policies/test_policy.py",
    ),
    Mutant(PLAYER, "if not self.explain:", "if True:", "agents/test_player.py"),
    Mutant(EVALUATOR, "self._idle = False", "pass", "runs/test_evaluator.py"),
    Mutant(EVALUATOR, "if self._waiting is not None and self._idle:", "if False:", "runs/test_evaluator.py"),
    Mutant(SB3_LAYERS, "gradient.new_ones(())", "gradient.new_zeros(())", "policies/test_sb3.py"),
    Mutant(
        SB3_LAYERS, "if not (self.training and torch.is_grad_enabled()):", "if False:", "policies/test_sb3.py"
    ),
    Mutant(SB3_ACTOR_CRITIC, "log_prob(actions), -loss)", "log_prob(actions), loss)", "policies/test_sb3.py"),
    Mutant(SB3_ACTOR_CRITIC, "self.share_features_extractor}", "True}", "policies/test_sb3.py"),
    Mutant(
        SB3_ENVS,
        "if over else observation[row]",
        "if over else info.get('final_obs', observation)[row] * 0",
        "envs/test_sb3.py",
    ),
    Mutant(SB3_ENVS, "truncated[row] and not terminated[row]", "terminated[row]", "envs/test_sb3.py"),
    Mutant(WORKER, "(worker, resumed_at, restarts)", "(worker, resumed_at)", SUPERVISOR),
    Mutant(WORKER, "    exit_with_parent()\n", "", SUPERVISOR),
    Mutant(SUPERVISE, "if silent > seat", "if False and silent > seat", SUPERVISOR),
    Mutant(SUPERVISE, "self.restarts += 1", "pass", SUPERVISOR),
    Mutant(SUPERVISE, "board.steps[ended] += each", "board.steps += each", SUPERVISOR),
    Mutant(
        SUPERVISE,
        "if not seat.silences:\n                    raise",
        "if False:\n                    raise",
        SUPERVISOR,
    ),
    Mutant(WORKER, "torch.set_rng_state(torch.from_numpy", "(torch.from_numpy", EXACT),
    Mutant(WORKER, "            restore_generators(snapshot)\n", "            pass\n", EXACT),
    Mutant(ROLLOUT, "self.generator.set_state(saved.generator)", "pass", EXACT),
    Mutant(
        ROLLOUT,
        "tuple(part.to(device) for part in saved.recurrent), saved.ep",
        "self.policy.initial_state(len(saved.episode_start)), saved.ep",
        EXACT,
    ),
    Mutant(CALIBRATION, "bias.sub_(mean).div_(std)", "bias.add_(mean).div_(std)", "calibration"),
    Mutant(CALIBRATION, "weight.div_(std", "weight.mul_(std", "calibration"),
    Mutant(CALIBRATION, "std > 1e-3 * std.max()", "std >= 0", "calibration"),
    Mutant(CALIBRATION, "isinstance(core, RecurrentCore)", "False", "calibration"),
    Mutant(CALIBRATION, "policy.encoder.fit(observation)", "pass", "pixels"),
    Mutant(CALIBRATION, "        return\n", "", "pixels"),
    Mutant(IMAGE_ENCODER, "if scaled and self.pixels is None", "if scaled", "pixels"),
    Mutant(PIXELS, "shown.mean(0).round()", "shown.mean(0)", "pixels"),
    Mutant(PIXELS, "shown[~padding[:, channel]]", "shown", "pixels"),
    Mutant(PIXELS, "few or padding.any()", "few", "pixels"),
    Mutant(PIXELS, ".clamp_min(LEAST_DEVIATION)", "", "pixels"),
    Mutant(PIXELS, "(1 / deviation).to(torch.bfloat16)", "1 / deviation", "pixels"),
    Mutant(PIXELS, "image.masked_fill_(padding, 0) if", "image if", "pixels"),
    Mutant(PIXELS, "correction=0", "correction=1", "pixels"),
    Mutant(IMAGE_ENCODER, "if standardize and scaled", "if standardize", "pixels"),
    Mutant(IMAGE_ENCODER, "else self.pixels(images, seen)", "else seen", "tape"),
    Mutant(IMAGE_ENCODER, "weight = weight * (1 / 255)", "pass", "blocks"),
    Mutant(
        IMAGE_ENCODER,
        "grad_weight = F.pixel_shuffle(grad_weight, BLOCK)",
        "grad_weight = grad_weight.reshape(layer.weight.shape)",
        "tape",
    ),
    Mutant(IMAGE_ENCODER, "self.pixels.of_blocks(observation, blocks)", "blocks", "tape"),
    Mutant(PIXELS, "padding.repeat_interleave(BLOCK**2, 1)", "padding.repeat(1, BLOCK**2, 1, 1)", "blocks"),
    Mutant(PIXELS, "permute(0, 2, 4, 1, 3)", "permute(0, 2, 4, 3, 1)", "blocks"),
    Mutant(BLOCKS, "permute(0, 2, 1, 3, 4)", "permute(0, 2, 3, 1, 4)", "blocks"),
    Mutant(BLOCKS, "images.contiguous()", "images", "blocks"),
    Mutant(
        ROLLOUT,
        "repeats = (draw < self.extra_sticky) & ~self._start",
        "repeats = draw < self.extra_sticky",
        "agents/test_a3c.py",
    ),
    Mutant(ROLLOUT, "(draw < self.extra_sticky)", "(draw > self.extra_sticky)", "agents/test_a3c.py"),
    Mutant(
        ROLLOUT, "self._played = self._repeat_some(action)", "self._played = action", "agents/test_a3c.py"
    ),
    Mutant(
        ROLLOUT,
        "self._pending = (self._start, action, logits)\n        self._played = self._repeat_some(action)",
        "action = self._played = self._repeat_some(action)\n        self._pending = (self._start, action, logits)",
        "agents/test_a3c.py",
    ),
    Mutant(ROLLOUT, "self._played = saved.played", "pass", EXACT),
    Mutant(
        A3C,
        "config.entropy_coefficient + fallen",
        "config.entropy_coefficient - fallen",
        "agents/test_a3c.py",
    ),
    Mutant(
        A3C,
        "min(1.0, agent_steps / (config.extra_sticky_steps or total_steps))",
        "agent_steps / (config.extra_sticky_steps or total_steps)",
        "agents/test_a3c.py",
    ),
    Mutant(A3C, "config.extra_sticky_steps or total_steps", "total_steps", "agents/test_a3c.py"),
    Mutant(A3C, "config.extra_sticky * (1 - done)", "config.extra_sticky * done", "agents/test_a3c.py"),
    Mutant(WORKER, "actor.extra_sticky = sticky", "pass", "agents/test_a3c.py"),
    Mutant(CORES, "gradients = below + gradients", "gradients = gradients + below", "cores"),
    Mutant(CORES, "in reversed(list(zip(self._cores()", "in (list(zip(self._cores()", "cores"),
    Mutant(RECORDER, ' & ~step.info["_episode"]', "", REPLAY),
    Mutant(RECORDER, "step.truncated[row] and not step.terminated[row]", "step.terminated[row]", REPLAY),
    Mutant(PROGRAMS, "np.divide(attention, mean,", "np.divide(attention, 1.0,", REPLAY_PROGRAMS),
    Mutant(PROGRAMS, "length >= hold and", "length > hold and", REPLAY_PROGRAMS),
    Mutant(PROGRAMS, "begun[0] = (0, begun[0][1])", "pass", REPLAY_PROGRAMS),
    Mutant(PROGRAMS, "sigma / sigma.sum(dim=-1, keepdim=True)", "sigma / sigma.shape[-1]", REPLAY_PROGRAMS),
    Mutant(PROGRAMS, "<= FLAT", "<= -FLAT", REPLAY_PROGRAMS),
    Mutant(PROGRAMS, "top.max() > COLLAPSED", "top.max() > 2", REPLAY_PROGRAMS),
    Mutant(PROGRAMS, "self.low + self.step", "self.step", REPLAY_PROGRAMS),
    Mutant(PROGRAMS, "np.lexsort((-attention.mean(axis=0), -steps))", "np.argsort(-steps)", REPLAY_PROGRAMS),
    Mutant(FRAMES, "min(BLOCK, MAX_HEIGHT // height)", "BLOCK", REPLAY),
    Mutant(FRAMES, "zlib.crc32(picture.tobytes(), self.crcs[-1])", "zlib.crc32(picture.tobytes())", REPLAY),
    Mutant(FRAMES, "if size != (width, height):", "if False:", REPLAY),
    Mutant(EMULATION, "if step and np.float32(moment.reward) != rewards[step - 1]:", "if False:", REPLAY),
    Mutant(EMULATION, "if frames.crcs[block] != info.frame_crcs[block]:", "if False:", REPLAY),
    Mutant(EMULATION, "if not 0 <= action < n_actions:", "if False:", REPLAY),
    Mutant(EMULATION, 'if not moment.over and info.ended != "stuck":', "if False:", REPLAY),
    Mutant(EPISODE, "shape[0] != rows or ", "", REPLAY),
    Mutant(EPISODE, 'dtype.kind not in "biuf" or dtype.itemsize > 8', "False", REPLAY),
    Mutant(EPISODE, 'order="F" if fortran else "C"', 'order="C"', REPLAY_PROGRAMS),
    Mutant(EPISODE, "if schema != SCHEMA:", "if False:", REPLAY),
    Mutant(EPISODE, " or size > MAX_ARRAY", "", REPLAY),
    Mutant(EPISODE, "if len(data) != size:", "if False:", REPLAY),
    Mutant(PICKS, "(len(order) - 1) // 2", "0", REPLAY),
    Mutant(PICKS, "shown - self._agent.protocol.frame_skip", "shown", REPLAY),
    Mutant(PAGE, 'text.replace("<", "\\\\u003c")', "text", REPLAY),
    Mutant(PAGE, "float(np.clip(reward[step], -1, 1))", "float(reward[step])", REPLAY),
    Mutant(VIEWER, "allowed_hosts=HOSTS", 'allowed_hosts=["*"]', SERVER),
    Mutant(
        VIEWER,
        '        index.require_inside(found.folder / "frames" / strip_name(int(number)))\n',
        "",
        SERVER,
    ),
    Mutant(
        SORTED,
        "return (location + rows / 2) % rows - rows / 2",
        "return location",
        "runs/test_sequence_tables.py",
    ),
    Mutant(
        SEQUENCE_TESTS, 'tests.get("run") == row["run"]', '"run" in tests', "runs/test_sequence_tables.py"
    ),
    Mutant(TRAININGS, "if key not in OF_MACHINE and", "if", "runs/test_experiment.py"),
    Mutant(TRAININGS, "for key in {**there, **now}", "for key in now", "runs/test_experiment.py"),
    Mutant(TRAININGS, "        lock.acquire()\n", "        pass\n", "runs/test_experiment.py"),
    Mutant(PROBES, "total += 2 * (", "total += 1 * (", "agents/test_continual.py"),
    Mutant(PROBES, "total += products @", "total -= products @", "agents/test_continual.py"),
    Mutant(PROBES, "total[: layer.frozen_slots] = 0", "pass", "agents/test_continual.py"),
    Mutant(PROBES, 'seen["scale"] * seen["input"]', 'seen["input"]', "agents/test_continual.py"),
    Mutant(PROBES, "of_key_BPK.sum(1).square()", "of_key_BPK.square().sum(1)", "agents/test_continual.py"),
    Mutant(IMPORTANCE, "layer.forward = own", "pass", "agents/test_continual.py"),
    Mutant(
        IMPORTANCE, "atol=1e-4 * float(right.max())", "atol=float(right.max())", "agents/test_continual.py"
    ),
    Mutant(
        CONTINUAL,
        "torch.zeros_like(parameter) if of_loss is None",
        "None if of_loss is None",
        "agents/test_continual.py",
    ),
    Mutant(
        SIDE_BY_SIDE,
        "(nothing, head.aux_loss())",
        "(nothing, 0 * head.aux_loss())",
        "policies/test_side_by_side.py",
    ),
    Mutant(
        SIDE_BY_SIDE, "            self._asked = before", "            pass", "policies/test_side_by_side.py"
    ),
    Mutant(LAYER, "torch.is_grad_enabled() and not self.fixed_routing", "True"),
    Mutant(TAPE, "if self._length in (0, self.n_steps):", "if self._length == 0:", "policies/test_tape.py"),
    Mutant(TAPE, "output.float() if self.lowered else output", "output", "policies/test_tape.py"),
    Mutant(CORES, "inner.to(hidden.dtype).add_(", "inner.add_(", "policies/test_tape.py"),
    Mutant(
        IMAGE_ENCODER,
        "sums = torch.float32 if dtype == torch.bfloat16 else dtype",
        "sums = dtype",
        "policies/test_tape.py",
    ),
    Mutant("agents/processes.py", "os.environ.update(self._variables)", "pass", "agents/test_processes.py"),
]


def suite_of(mutant: Mutant) -> str:
    """Return the file whose tests must go red."""
    return f"tests/{mutant.tests}" if "/" in mutant.tests else f"tests/policies/test_{mutant.tests}.py"


def main(words: list[str]) -> int:
    survivors = 0
    for number, mutant in enumerate(MUTANTS, start=1):
        if words and not any(word in mutant.file for word in words):
            continue
        text = (ROOT / mutant.file).read_text("utf-8")
        if text.count(mutant.old) != 1:
            print(
                f"{number:>3}  stale     {mutant.file}: {mutant.old!r} occurs {text.count(mutant.old)} times"
            )
            survivors += 1
            continue
        with tempfile.TemporaryDirectory() as folder:
            package = Path(folder) / "neurocoder"
            shutil.copytree(ROOT / "src" / "neurocoder", package)
            for room in ("agents", "envs", "policies", "runs"):
                shutil.copytree(ROOT / room, package / room)
            target = package / mutant.file
            target.write_text(text.replace(mutant.old, mutant.new), "utf-8")
            done = subprocess.run(
                [sys.executable, "-m", "pytest", "-qx", "-n0", suite_of(mutant)],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": folder},
                capture_output=True,
                text=True,
            )
        red = [
            line.split("::")[-1].split(" ")[0]
            for line in done.stdout.splitlines()
            if line.startswith("FAILED")
        ]
        survivors += not red
        print(
            f"{number:>3}  {'red       ' + red[0] if red else 'SURVIVED'}  <-  {mutant.new!r} for {mutant.old!r}",
            flush=True,
        )
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
