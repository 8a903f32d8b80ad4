"""Wrong data, models, files and devices."""

from __future__ import annotations

from wrong_inputs import case

CASES = [
    case("data: missing", "--data.train.path no.jsonl", "there is no file or directory 'no.jsonl'", "check the path"),
    case("data: empty", "--data.train.path empty.jsonl", "at least one text", "'empty.jsonl' is empty", "give another"),
    case("data: empty texts", "--data.train.path blank.jsonl", "must hold some text", "'blank.jsonl'", "give another"),
    case("data: other field", "--data.train.text_field body", "must be a column", "'body'", "has ['text']", "name one"),
    case("data: numbers", "--data.train.path numbers.jsonl", "must hold strings", "holds int", "name another column"),
    case(
        "data: null", "--data.train.path gap.jsonl", "must hold strings", "NoneType in row 2 of 'gap.jsonl'", "remove"
    ),
    case(
        "data: broken line", "--data.train.path broken.jsonl", "'broken.jsonl' could not be read", "row 2", "Check that"
    ),
    case("data: latin-1", "--data.train.path latin.txt", "must be UTF-8", "'latin.txt' is not", "convert it"),
    case(
        "data: cut parquet", "--data.train.path cut.parquet", "'cut.parquet' could not", "is complete", "Parquet magic"
    ),
    case(
        "data: surrogate", "--data.train.path halves", "half of a surrogate", "row 1 of 'halves/b.jsonl'", "remove it"
    ),
    case(
        "data: surrogate when streaming",
        "--data.streaming true --data.train.path halves --data.num_workers 1",
        *("half of a surrogate", "row 1 of 'halves/b.jsonl'", "remove it"),
    ),
    case("data: other kind", "--data.train.path table.xml", "must be of one kind", "['.xml']", "Select one kind"),
    case("data: empty folder", "--data.train.path empty_folder", "must hold .txt", "'empty_folder' has none", "check"),
    case("data: no match", "--data.train.path no/*.jsonl", "no file matches 'no/*.jsonl'", "relative paths start at"),
    case("data: other split", "--data.train.split vla", "(split 'vla')", "that of local files is train"),
    case("data: no texts to test on", "", "test needs texts", "set data.test.path", verb="test"),
    case("data: short windows", "--data.sequence_length 1", "must be at least 2", "got 1"),
    case("data: no windows", "--data.sequence_length 0", "sequence_length must be >= 1", "got 0"),
    case("data: long windows", "--data.sequence_length 1024", "at most the positions", "got 1024", "lower it to 512"),
    case("data: no batch", "--data.batch_size 0", "batch_size must be >= 1", "got 0"),
    case(
        "data: workers",
        "--data.num_workers -1",
        "num_workers must be a finite number >= 0",
        "got -1",
        "0 loads batches in",
    ),
    case(
        "data: stream without an end",
        "--data.streaming true --trainer.max_steps -1",
        *("a stream has no epochs", "got -1", "give a number of steps"),
    ),
    case(
        "data: validation inside a stream's epoch",
        "--data.streaming true --trainer.val_check_interval 0.5",
        *("must be a whole number of steps", "got 0.5", "set data.streaming to false"),
    ),
    case(
        "data: validation after the epoch",
        "--trainer.val_check_interval 100000",
        *("at most the number of training batches", "got 100000", "set trainer.check_val_every_n_epoch to null"),
    ),
    case(
        "tokenizers: missing",
        "--model.student.model ./no",
        "must be a directory with a tokenizer.json",
        "'./no'",
        "Check",
    ),
    case("tokenizers: not in the folder", "--model.student.model no_tokenizer", "'no_tokenizer' has no tokenizer.json"),
    case("tokenizers: cut", "--model.student.model cut_tokenizer", "'cut_tokenizer' could not be loaded", "Check the"),
    case(
        "tokenizers: word pieces", "--model.student.model word_pieces", "'word_pieces'", "WordPiece", "Use a byte-level"
    ),
    case(
        "tokenizers: text to audit",
        "--student student --teacher split --text no.txt",
        "'no.txt'",
        "check",
        verb="audit",
    ),
    case("models: no weights", "--model.student.model no_weights", "of the student", "'no_weights'", "Check the path"),
    case(
        "models: cut weights", "--model.student.model cut_weights", "must be whole", "'cut_weights'", "copy or download"
    ),
    case(
        "models: a layer is missing",
        "--model.student.model lacks_layer --data.train.path no.jsonl",  # texts are read later
        *("weights of the student must be complete", "9 of 21", "'lacks_layer'", "layers.1.", "and 6 more", "download"),
    ),
    case(
        "models: a layer of a teacher is missing",
        "--model.teachers.same.model lacks_layer --data.train.path no.jsonl",
        *("weights of the teacher 'same' must be complete", "9 of 21", "'lacks_layer'", "layers.1.", "download"),
    ),
    case(
        "models: export with another configuration",
        "--checkpoint whole.ckpt --output out --student.model one_layer",
        *("exported weights must be those of", "give the student of the run", "layers.1."),
        verb="export",
    ),
    case(
        "models: no configuration", "--model.student.model odd", "of the student", "'odd' could not", "Check the path"
    ),
    case("models: small head", "--model.student.model small_head", "a row for every token", "500 rows", "resize its"),
    case(
        "models: attention",
        "--model.student.attn_implementation nosuch",
        *("of the student", 'attn_implementation="nosuch"', "or the options"),
    ),
    case(
        "models: offloaded and quantized",
        "--model.teachers.same.cpu_offload true --model.teachers.same.quantization 4bit",
        *("exclude each other", "'4bit'", "leave one out"),
    ),
    case(
        "models: token by token across vocabularies",
        "--model.teachers.split.loss xtoken_pl.TokenKL",
        *("TokenKL needs the same vocabulary", "use "),
    ),
    case(
        "W: missing", "--model.teachers.split.projection no.st", "written by `python -m xtoken_pl project`", "'no.st'"
    ),
    case(
        "W: cut", "--model.teachers.split.projection cut_w.safetensors", "'cut_w.safetensors' is truncated", "rebuild"
    ),
    case(
        "W: another file",
        "--model.teachers.split.projection student/model.safetensors",
        "file of format",
        "has format 'pt'",
        "build one",
    ),
    case(
        "W: another pair",
        "--model.teachers.split.projection other_w.safetensors",
        "must belong to",
        "700",
        "Rebuild it",
    ),
    case("W: no use", "--model.teachers.same.projection w.safetensors", "TokenKL uses none", "leave `projection` out"),
    case("W: learned without use", "--model.teachers.same.learn_projection true", "TokenKL gives", "use ProjectionKL"),
    case(
        "W: there already",
        "--student student --teacher split --output w.safetensors",
        "exists",
        "another path",
        verb="project",
    ),
    case(
        "W: gamma", "--student a --teacher b --output c --gamma 2", "gamma must be in (0, 1]", "got 2", verb="project"
    ),
    case("caches: missing", "--model.teachers.same.cache no", "written by `python -m xtoken_pl cache`", "'no' has no"),
    case(
        "caches: of another teacher",
        "--model.teachers.split.cache cache",
        "'cache' of teacher 'split'",
        "leave `cache`",
    ),
    case(
        "caches: other temperature",
        "--model.teachers.same.cache cache --model.teachers.same.temperature 2",
        *("'cache' of teacher 'same'", "temperature", "Use what it was built with"),
    ),
    case("caches: cut shard", "--model.teachers.same.cache cut_cache", "must have", "but has", "cache` again"),
    case(
        "caches: stream",
        "--model.teachers.same.cache cache --data.streaming true",
        *("a stream has none", "'same'", "set data.streaming to false"),
    ),
    case("caches: unknown teacher", "--teacher nobody", "must be one of same", "got 'nobody'", verb="cache"),
    case("caches: no folder", "--teacher same", "a cache needs a directory", "'same'", "give --output", verb="cache"),
    case("checkpoints: missing", "--ckpt_path no.ckpt", "must be a checkpoint", "'no.ckpt'", "check the path"),
    case("checkpoints: cut", "--ckpt_path cut.ckpt", "must be whole", "'cut.ckpt' is not", "whole.ckpt"),
    case("checkpoints: random bytes", "--ckpt_path random.ckpt", "must be whole", "500 bytes", "whole.ckpt"),
    case(
        "checkpoints: another file of torch", "--ckpt_path weights.ckpt", "that a run wrote", "holds state_dict", "give"
    ),
    case("checkpoints: weights alone", "--ckpt_path light.ckpt", "states of optimizers", "'light.ckpt'", "another one"),
    case(
        "checkpoints: last of none",
        "--ckpt_path last",
        "needs a checkpoint",
        "there is none in",
        "leave --ckpt_path out",
    ),
    case(
        "checkpoints: of another student",
        "--ckpt_path whole.ckpt --model.student.model split --model.teachers.same.loss auto",
        *("the student of the checkpoint has another tokenizer", "start a new run"),
    ),
    case(
        "checkpoints: of another teacher",
        "--ckpt_path whole.ckpt --model.teachers.same.model student",
        *("teacher 'same' has another weights", "start a new run"),
    ),
    case(
        "checkpoints: export of none",
        "--checkpoint no.ckpt --output out",
        *("there is none at 'no.ckpt'", "check the path"),
        verb="export",
    ),
    case(
        "checkpoints: export to what exists",
        "--checkpoint whole.ckpt --output student",
        *("student exists", "choose another path"),
        verb="export",
    ),
    case(
        "checkpoints: below a file",
        "--trainer.default_root_dir a_file/x",
        "Not a directory",
        "a_file/x",
        "check the path",
    ),
    case("devices: no GPU", "--trainer.accelerator gpu", "accelerator=gpu", "No supported gpu", "under `trainer:`"),
    case("devices: unknown accelerator", "--trainer.accelerator gpo", "accelerator='gpo'", "Available names", "cpu"),
    case("devices: none", "--trainer.devices 0", "devices=0", "not a valid input using cpu", "under `trainer:`"),
    case("devices: a word", "--trainer.devices many", "should be an int > 0", "devices=many", "under `trainer:`"),
    case("devices: precision", "--trainer.precision float7", "must be one of 64, 32, 16", "got 'float7'", "16-mixed"),
    case("devices: strategy", "--trainer.strategy ddpp", "must be a known name", "got 'ddpp'", "did you mean ddp?"),
    case("devices: FSDP1", "--trainer.strategy fsdp", "'fsdp' is not supported", "head", "--trainer.strategy fsdp2"),
    case(
        "devices: DeepSpeed",
        "--trainer.strategy deepspeed_stage_3",
        "is not supported",
        "head",
        "--trainer.strategy ddp",
    ),
    case(
        "devices: class of FSDP1",
        "--trainer.strategy lightning.pytorch.strategies.FSDPStrategy",
        *("is not supported", "FSDPStrategy'", "--trainer.strategy fsdp2"),
    ),
    case("devices: spawned", "--trainer.strategy ddp_spawn", "'ddp_spawn'", "ends with them", "--trainer.strategy ddp"),
    case(
        "devices: tensor parallel",
        "--trainer.devices 3 --trainer.strategy.class_path lightning.pytorch.strategies.ModelParallelStrategy",
        *("tensor_parallel_size must divide", "got 3 for the", "of the student", "tensor_parallel_size: 1"),
    ),
    case(
        "devices: FSDP2 in float64",
        "--trainer.strategy fsdp2 --trainer.precision 64-true",
        *("trainer.precision must be", "got '64-true'", "change one"),
    ),
    case("devices: plan for no memory", "--gpu_memory 0", "gpu_memory must be > 0", "got 0", "80 is", verb="plan"),
]
