"""Options that would be ignored or replaced beside others, or that do the opposite of what their names say."""

from __future__ import annotations

from wrong_inputs import callback, case

_CHECKPOINT = "lightning.pytorch.callbacks.ModelCheckpoint"

CASES = [
    case(
        "ignored: revision of a local student",
        "--model.student.revision v2",
        *("revision belongs to a model on the hub", "'student'", "leave it out"),
    ),
    case(
        "ignored: revision of a local teacher",
        "--model.teachers.same.revision v2",
        *("revision belongs to a model on the hub", "'same'", "leave it out"),
    ),
    case(
        "ignored: name of local files of a builder",
        "--data.train.path json --data.train.data_files texts.jsonl --data.train.name other",
        *("name belongs to a data set", "'json' with data_files", "leave it out"),
    ),
    case(
        "ignored: a key of an option given twice",
        '--data {"batch_size":1,"batch_size":2}',
        *("a key must be given once", "'batch_size'", "rename or remove one"),
    ),
    case(
        "ignored: weights that are not loaded yet",
        "",
        *("StochasticWeightAveraging", "averages nothing", "EMAWeightAveraging"),
        config=callback("lightning.pytorch.callbacks.StochasticWeightAveraging", swa_lrs=1e-3),
    ),
    case(
        "ignored: monitor of a callback that is not there",
        "",
        *("monitors 'train/loss'", "only TeacherMonitor or AlignmentMonitor logs", "add it"),
        config=callback(_CHECKPOINT, monitor="train/loss"),
    ),
    case(
        "reversed: the worst checkpoint by a loss",
        "",
        *("mode must be min for 'val/ce'", "got max", "worst checkpoints", "set mode: min"),
        config=callback(_CHECKPOINT, monitor="val/ce", mode="max"),
    ),
    case(
        "reversed: the worst checkpoint by agreement",
        "",
        *("mode must be max for 'val/top1_agreement/same'", "got min", "set mode: max"),
        config=callback(_CHECKPOINT, monitor="val/top1_agreement/same"),
    ),
    case(
        "reversed: stopping as agreement grows",
        "",
        *("mode must be max for 'val/top1_agreement/same'", "stop on improvements", "set mode: max"),
        config=callback("lightning.pytorch.callbacks.EarlyStopping", monitor="val/top1_agreement/same"),
    ),
    case(
        "rollouts: nothing to learn from",
        "--model.rollouts xtoken_pl.Rollouts --model.kd_weight 0",
        *("kd_weight must be > 0 with rollouts", "got 0", "leave rollouts out"),
    ),
    case(
        "rollouts: a teacher that cannot read them",
        "--model.rollouts xtoken_pl.Rollouts --model.teachers.same.cache stored",
        *("teachers must be run", "'same' has a cache", "leave `cache` out"),
    ),
    case(
        "rollouts: a cache that no run of the configuration can read",
        "--model.rollouts xtoken_pl.Rollouts --model.rollouts.share 0.5 --teacher same --output stored",
        *("a cache knows the texts of the data only", "share=0.5", "leave model.rollouts out"),
        verb="cache",
    ),
    case(
        "rollouts: nothing to scale to",
        "--model.rollouts xtoken_pl.Rollouts",
        *("DynamicLossScaling scales to the cross-entropy", "model.rollouts.share=1", "lower the share"),
        config=callback("xtoken_pl.callbacks.DynamicLossScaling"),
    ),
    case(
        "rollouts: monitor of steps that there are none of",
        "--model.rollouts xtoken_pl.Rollouts",
        *("monitors 'train/loss'", "model.rollouts.share: 1", "monitor another tag"),
        config=callback(_CHECKPOINT, monitor="train/loss"),
    ),
    case(
        "rollouts: monitor of a source of the data that no step learns",
        "--model.rollouts xtoken_pl.Rollouts",
        *("monitors 'data/ce/a'", "model.rollouts.share: 1", "monitor another tag"),
        config=callback(_CHECKPOINT, monitor="data/ce/a"),
    ),
    case(
        "rollouts: monitor without them",
        "",
        *("monitors 'rollouts/loss'", "without model.rollouts", "monitor another tag"),
        config=callback(_CHECKPOINT, monitor="rollouts/loss"),
    ),
    case("nothing: no batches to train", "--trainer.limit_train_batches 0", "must be > 0", "got 0", "validate"),
    case(
        "nothing: no batches to validate",
        "--trainer.limit_val_batches 0",
        *("limit_val_batches must be > 0", "got 0", "leave it out"),
        verb="validate",
    ),
    case("number: betas", "--model.optimizer.betas [1.5,0.9]", "betas must be in [0, 1)", "1.5", "the default is"),
    case("number: infinite rate", "--model.optimizer.learning_rate .inf", "must be > 0 and finite", "got inf", "5e-05"),
    case(
        "number: infinite decay", "--model.optimizer.weight_decay .inf", "finite number >= 0", "got inf", "0 disables"
    ),
    case("number: infinite memory", "--model.logits_memory .inf", "must be a finite number > 0", "got inf", "0.5 is"),
    case("number: negative seed", "--data.seed -1", "seed must be a finite number >= 0", "got -1", "leave it out"),
    case("checkpoint: best", "--ckpt_path best", "ckpt_path must be", "got 'best'", "give the path"),
    case("checkpoint: none of a cluster", "--ckpt_path hpc", "there is no such checkpoint", "pass an exact"),
]
