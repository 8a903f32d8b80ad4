"""Wrong options and configurations."""

from __future__ import annotations

from wrong_inputs import callback, case

_MONITOR = "lightning.pytorch.callbacks.ModelCheckpoint"
#: A logger of one version, whose folder holds another run.
TAKEN = {
    "class_path": "lightning.pytorch.loggers.CSVLogger",
    "init_args": {"save_dir": "logs", "name": "taken", "version": 0},
}

CASES = [
    case(
        "chat: no such field",
        "--data.train.messages_field talk --model.student.chat_template chat.jinja "
        "--model.teachers.same.chat_template chat.jinja",
        *("must be a column", "'talk'", "name one of them"),
    ),
    case("chat: prompt alone", "--data.train.prompt_field text", "belong together", "'text'", "set completion_field"),
    case(
        "chat: no messages",
        "--data.train.messages_field text --model.student.chat_template chat.jinja "
        "--model.teachers.same.chat_template chat.jinja",
        *("text must hold a list of at least one message", "got str", "remove such rows"),
    ),
    case(
        "chat: no template",
        "--data.train.messages_field text",
        *("conversations need a chat template on every side", "student", "name a Jinja file"),
    ),
    case("chat: missing template", "--model.student.chat_template no.jinja", "must be a Jinja file", "'no.jinja'"),
    case("chat: packing", "--data.packing seperate", "one of none, joined, separate", "'seperate'", "did you mean"),
    case("adapters: rank", "--model.student.adapter.rank 0", "rank of an adapter must be >= 1", "got 0", "leave the"),
    case(
        "adapters: random weights",
        "--model.student.adapter.rank 4 --model.student.weights random",
        *("an adapter needs pretrained weights", "weights='random'", "use pretrained weights"),
    ),
    case(
        "adapters: no such layers",
        "--model.student.adapter.target_modules [q_prj]",
        *("must be linear layers below the head", "q_prj", "are called"),
    ),
    case(
        "adapters: quantized alone", "--model.student.quantization 4bit", "cannot be trained", "'4bit'", "give it one"
    ),
    case("inspect: window", "--weights false --window 99999", "must be one of", "99999", "choose one", verb="inspect"),
    case("config: unknown verb", "", "the first argument must be a verb", "'fti'", "did you mean fit?", verb="fti"),
    case("config: no file", "--config", "--config must be a YAML file", "got nothing", "write --config FILE"),
    case("config: missing file", "--config no.yaml", "must be a YAML file", "'no.yaml'", "check the path"),
    case("config: no YAML", "", "must be YAML", "'extra.yaml' is not", "may be truncated", config="model: {student: ["),
    case("config: no mapping", "", "must be a YAML mapping", "holds list", "give another file", config="[1, 2]"),
    case(
        "config: a teacher given twice",
        "",
        *("a key must be given once", "'same' in lines 3 and 4", "rename or remove one"),
        config="model:\n  teachers:\n    same: {alpha: 1}\n    same: {alpha: 2}\n",
    ),
    case(
        "config: unknown section",
        "",
        "modle.a in extra.yaml is not an option",
        "did you mean model?",
        config={"modle": {"a": 1}},
    ),
    case("config: unknown option", "--cofnig x", "--cofnig is not an option", "did you mean config?"),
    case("config: stray word", "stray", "'stray' is neither an option nor", "--KEY VALUE"),
    case(
        "config: unknown option of a module",
        "--model.studnet.model x",
        *("--model.studnet.model is not an option", "did you mean student?"),
    ),
    case(
        "config: unknown option of the student",
        "",
        *("model.student.wieghts in extra.yaml is not an option", "did you mean weights?"),
        config={"model": {"student": {"wieghts": "random"}}},
    ),
    case(
        "config: unknown option of a teacher",
        "--model.teachers.same.alfa 1",
        *("--model.teachers.same.alfa is not an option", "did you mean alpha?"),
    ),
    case("config: unknown option of data", "--data.sequence_lenght 9", "did you mean sequence_length?"),
    case(
        "config: unknown option of texts",
        "--data.train.pth x",
        "--data.train.pth is not an option",
        "did you mean path?",
    ),
    case(
        "config: unknown option of the trainer",
        "",
        *("trainer.max_setps in extra.yaml is not an option", "did you mean max_steps?"),
        config={"trainer": {"max_setps": 3}},
    ),
    case(
        "config: unknown option of a callback",
        "",
        "trainer.callbacks[0].init_args.num_batch in extra.yaml is not an option",
        "did you mean num_batches?",
        config=callback("xtoken_pl.callbacks.NumeralMonitor", num_batch=3),
    ),
    case(
        "config: unknown option of a loss",
        "--model.teachers.split.loss.divergance reverse",
        *("--model.teachers.split.loss.divergance is not an option", "did you mean divergence?"),
    ),
    case(
        "config: unknown callback",
        "",
        "trainer.callbacks[0].class_path in extra.yaml must be the path of a class",
        *("has no attribute 'TeacherMonitr'", "did you mean xtoken_pl.callbacks.TeacherMonitor?"),
        config=callback("xtoken_pl.callbacks.TeacherMonitr"),
    ),
    case(
        "config: unknown package",
        "--model.teachers.same.loss xtoken_p.TokenKL",
        *("No module named 'xtoken_p'", "did you mean xtoken_pl.TokenKL?"),
    ),
    case("config: word of another case", "--model.teachers.same.loss Auto", "got 'Auto'", "did you mean auto?"),
    case(
        "config: callback for a loss",
        "--model.teachers.same.loss xtoken_pl.callbacks.TeacherMonitor",
        *(
            "must be the path of a SpanLoss",
            "got 'xtoken_pl.callbacks.TeacherMonitor'",
            "choose one of",
            "xtoken_pl.BytePrefixKL",
        ),
    ),
    case("config: word for a number", "--model.teachers.same.alpha abc", "same.alpha must be a number", "got 'abc'"),
    case("config: word for a whole number", "--trainer.max_steps ten", "must be a whole number", "got 'ten'"),
    case("config: list for a number", "--model.teachers.same.temperature [1]", "must be a number", "got [1]"),
    case(
        "config: unknown choice",
        "--model.teachers.split.loss.divergence revers",
        *("must be one of forward, reverse, jensen_shannon", "got 'revers'", "did you mean reverse?"),
    ),
    case(
        "config: teachers as a list",
        "",
        *("model.teachers in extra.yaml must be a mapping", "got [{'model': 'same'}]"),
        config={"model": {"teachers": [{"model": "same"}]}},
    ),
    case(
        "config: student as a path",
        "",
        *("model.student in extra.yaml must be a mapping", "got 'student'", "did you mean {model: student}?"),
        config={"model": {"student": "student"}},
    ),
    case(
        "config: teacher without a model",
        "",
        *("model.teachers.third.model", "is required", "set it in a file"),
        config={"model": {"teachers": {"third": {"alpha": 1}}}},
    ),
    case(
        "config: nothing at all", "", "fit needs data and model", "set them in a file for --config", config="{}\n#alone"
    ),
    case(
        "config: option of a verb",
        "--studnet a --teacher b",
        "--studnet is not an option",
        "did you mean student?",
        verb="audit",
    ),
    case("config: verb without an option", "--student a", "audit needs teacher", "with --teacher", verb="audit"),
    case("config: negative alpha", "--model.teachers.same.alpha -1", "alpha must be a finite number >= 0", "got -1"),
    case("config: alpha that is no number", "--model.teachers.same.alpha .nan", "must be a finite number", "got nan"),
    case(
        "config: every alpha zero",
        "--model.teachers.same.alpha 0 --model.teachers.split.alpha 0",
        *("alpha must be > 0", "'split': 0.0", "raise one, or"),
    ),
    case(
        "config: temperature 0", "--model.teachers.same.temperature 0", "temperature must be > 0", "got 0", "1 leaves"
    ),
    case("config: nothing to learn", "--model.ce_weight 0 --model.kd_weight 0", "must be > 0", "got 0 and 0"),
    case("config: learning rate", "--model.optimizer.learning_rate -1", "learning_rate must be > 0", "got -1"),
    case(
        "config: scaling beside fixed weights",
        "--model.kd_weight 0.5",
        *("exclude each other", "kd_weight=0.5", "remove the callback, or the weights"),
        config=callback("xtoken_pl.callbacks.DynamicLossScaling"),
    ),
    case(
        "config: monitored tag that is not logged",
        "",
        *("must be a tag that is logged", "'val/bits_per_bite'", "did you mean val/bits_per_byte?"),
        config=callback(_MONITOR, monitor="val/bits_per_bite"),
    ),
    case(
        "config: monitored without texts",
        "--data.val null",
        *("needs texts to validate on", "'val/ce'", "set data.val.path"),
        config=callback(_MONITOR, monitor="val/ce"),
    ),
    case(
        "config: early stopping on a tag of a callback that is not there",
        "",
        *("monitors 'train/foo'", "only TeacherMonitor or AlignmentMonitor logs", "trainer.callbacks"),
        config=callback("lightning.pytorch.callbacks.EarlyStopping", monitor="train/foo"),
    ),
    case(
        "config: early stopping without a validation",
        "",
        *("first measured after", "trainer.max_steps: 1", "lower trainer.val_check_interval"),
        config=callback("lightning.pytorch.callbacks.EarlyStopping", monitor="val/ce"),
    ),
    case(
        "config: monitor without validation batches",
        "--trainer.limit_val_batches 0",
        *("needs texts to validate on", "'val/ce'", "trainer.limit_val_batches is 0"),
        config=callback(_MONITOR, monitor="val/ce"),
    ),
    case(
        "config: batch size finder",
        "",
        *("BatchSizeFinder cannot change", "remove the callback", "plan"),
        config=callback("lightning.pytorch.callbacks.BatchSizeFinder"),
    ),
    case(
        "config: learning rate finder",
        "",
        *("LearningRateFinder cannot set", "schedule", "update_attr: false"),
        config=callback("lightning.pytorch.callbacks.LearningRateFinder"),
    ),
    case(
        "config: pruning",
        "",
        *("ModelPruning looks for weights", "remove the callback"),
        config=callback("lightning.pytorch.callbacks.ModelPruning", pruning_fn="l1_unstructured"),
    ),
    case(
        "config: backbone",
        "",
        *("BackboneFinetuning needs", "`backbone`", "model.student.adapter"),
        config=callback("lightning.pytorch.callbacks.BackboneFinetuning"),
    ),
    case(
        "config: accumulation by epoch",
        "--trainer.max_steps -1 --trainer.max_epochs 1",
        *("does not know the number of steps", "set trainer.max_steps"),
        config=callback("lightning.pytorch.callbacks.GradientAccumulationScheduler", scheduling={0: 2}),
    ),
    case(
        "config: option that a class refuses",
        "",
        *("a class of the configuration refuses", "`mode` should be either of"),
        config=callback("lightning.pytorch.callbacks.LearningRateFinder", mode="x"),
    ),
    case("config: validation every 0 batches", "--trainer.val_check_interval 0", "must be > 0", "limit_val_batches: 0"),
    case(
        "config: validation every 0 epochs",
        "--trainer.check_val_every_n_epoch 0",
        "must be > 0",
        "limit_val_batches: 0",
    ),
    case("config: no steps", "--trainer.max_steps 0", "max_steps must be >= 1", "got 0", "give a number"),
    case("config: negative steps", "--trainer.max_steps -5", "max_steps` must be", "-5", "under `trainer:`"),
    case("config: no gradients", "--trainer.accumulate_grad_batches 0", "must be >= 1", "got 0", "with 1 every batch"),
    case(
        "config: teacher with a space",
        "",
        "must be letters",
        "'a b'",
        config={"model": {"teachers": {"a b": {"model": "same"}}}},
    ),
    case(
        "config: kept configuration",
        "",
        "taken/version_0/config.yaml belongs to another run",
        "choose another directory",
        config={"trainer": {"logger": TAKEN}},
    ),
]
