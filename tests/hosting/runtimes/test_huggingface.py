"""Pipelines of transformers, of tiny random models, against the pipelines themselves."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from octavo.hosting.datatypes import Datatype
from octavo.hosting.errors import InferenceError
from octavo.hosting.runtime import RuntimeOptions
from octavo.hosting.runtimes import load, runtime_of
from octavo.hosting.signature import ANY, TensorSpec
from tests.hosting.runtimes.checks import everything_is_installed, needs, refusal, run

if not everything_is_installed():  # it takes long to import
    pytest.skip("make runtimes", allow_module_level=True)
transformers = needs("transformers")

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *["good", "bad", "film", "the", "was", "a", "very"]]


@pytest.fixture(scope="module", autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def texts(*values: str) -> NDArray[Any]:
    return np.array([each.encode() for each in values], object)


def tokenizer(folder: Path) -> Any:
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    return transformers.BertTokenizerFast(vocab=str(folder / "vocab.txt"))


def bert(kind: str, folder: Path, **options: Any) -> Path:
    """The folder of a tiny random model."""
    config = transformers.BertConfig(vocab_size=len(WORDS), max_position_embeddings=32, **SIZES, **options)
    made = folder / "model"
    getattr(transformers, kind)(config).eval().save_pretrained(made)
    tokenizer(folder).save_pretrained(made)
    return made


def answers(given: dict[str, NDArray[Any]]) -> list[Any]:
    return [json.loads(each) for each in given["output"]]


def close(one: Any, other: Any) -> bool:
    """Equal but for the last digits."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(close, one, other))
    return bool(np.isclose(one, other, rtol=1e-3)) if isinstance(one, float) else one == other


def test_text_classification(tmp_path: Path) -> None:
    path = bert("BertForSequenceClassification", tmp_path, id2label={0: "NEGATIVE", 1: "POSITIVE"})
    assert runtime_of(path) == "transformers"
    runtime = load("transformers", path, RuntimeOptions(task="text-classification", threads=1))
    assert (runtime.platform, runtime.batches, runtime.concurrent) == ("transformers", True, False)
    assert runtime.inputs == (TensorSpec(name="args", datatype=Datatype.BYTES, dims=()),)
    assert runtime.outputs == (TensorSpec(name="output", datatype=Datatype.BYTES, dims=(), value="json"),)
    oracle = transformers.pipeline("text-classification", model=str(path))
    given = texts("good film", "the film was very very bad", "ü")
    right = [oracle(each.decode())[0] for each in given]
    assert close(answers(run(runtime, args=given)), right)
    assert close(answers(run(runtime, args=given[:1])), right[:1])
    with pytest.raises(InferenceError, match="input 'args' has an element that is no UTF-8"):
        run(runtime, args=np.array([b"\xff"], object))


def test_fill_mask_and_tokens(tmp_path: Path) -> None:
    given = texts("the film was [MASK]", "a [MASK] film")
    for kind, task in (("BertForMaskedLM", "fill-mask"), ("BertForTokenClassification", "token-classification")):
        path = bert(kind, tmp_path)
        runtime = load("transformers", path, RuntimeOptions(task=task))
        oracle = transformers.pipeline(task, model=str(path))
        right = json.loads(json.dumps([oracle(each.decode()) for each in given], default=float))
        assert close(answers(run(runtime, args=given)), right)
        assert close(answers(run(runtime, args=given[:1])), right[:1])


def test_labels_that_the_request_brings(tmp_path: Path) -> None:
    path = bert(
        "BertForSequenceClassification",
        tmp_path,
        id2label={0: "entailment", 1: "contradiction"},
        label2id={"entailment": 0, "contradiction": 1},
    )
    runtime = load("transformers", path, RuntimeOptions(task="zero-shot-classification"))
    assert [spec.name for spec in runtime.inputs] == ["args", "candidate_labels"]
    oracle = transformers.pipeline("zero-shot-classification", model=str(path))
    given = answers(
        run(runtime, args=texts("a good film", "a bad film"), candidate_labels=texts("good, bad", '["the"]'))
    )
    right = [oracle("a good film", ["good", "bad"]), oracle("a bad film", ["the"])]
    assert close(given, right)


def test_images(tmp_path: Path) -> None:
    image = needs("PIL.Image")
    config = transformers.ViTConfig(image_size=32, patch_size=16, **SIZES)
    path = tmp_path / "model"
    transformers.ViTForImageClassification(config).eval().save_pretrained(path)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(path)
    assert runtime_of(path) == "transformers"
    runtime = load("transformers", path, RuntimeOptions(task="image-classification"))
    pictures = [image.fromarray(np.random.default_rng(each).integers(0, 255, (40, 50, 3), np.uint8)) for each in (1, 2)]
    files = np.empty(2, object)
    for number, kind in enumerate(("PNG", "BMP")):
        file = io.BytesIO()
        pictures[number].save(file, kind)
        files[number] = file.getvalue()
    oracle = transformers.pipeline("image-classification", model=str(path))
    assert close(answers(run(runtime, args=files)), [oracle(each) for each in pictures])
    with pytest.raises(InferenceError, match="has an image that cannot be read: cannot identify image file"):
        run(runtime, args=np.array([b"no image"], object))


def test_audio(tmp_path: Path) -> None:
    config = transformers.Wav2Vec2Config(
        **SIZES,
        conv_dim=(8, 8),
        conv_stride=(5, 4),
        conv_kernel=(10, 8),
        num_feat_extract_layers=2,
        num_conv_pos_embedding_groups=2,
        num_conv_pos_embeddings=4,
        classifier_proj_size=8,
    )
    path = tmp_path / "model"
    transformers.Wav2Vec2ForSequenceClassification(config).eval().save_pretrained(path)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(path)
    runtime = load("transformers", path, RuntimeOptions(task="audio-classification"))
    assert runtime.inputs == (TensorSpec(name="args", datatype=Datatype.FP32, dims=(ANY,)),)
    waves = np.random.default_rng(0).normal(size=(2, 4000)).astype(np.float32)
    oracle = transformers.pipeline("audio-classification", model=str(path))
    assert close(answers(run(runtime, args=waves)), [oracle(each) for each in waves])


def test_what_is_no_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "is no pipeline that transformers can load" in refusal("transformers", tmp_path)
    path = bert("BertForSequenceClassification", tmp_path)
    assert "Unknown task" in refusal("transformers", path, RuntimeOptions(task="mind-reading"))
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    refusal("transformers", path, RuntimeOptions(task="text-classification"))
    (path / "config.json").write_text("{")
    assert runtime_of(path) is None
    refusal("transformers", path, RuntimeOptions(task="text-classification"))
