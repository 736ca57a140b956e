"""Evaluation projects that import `llava`: doubles of lmms-eval and VLMEvalKit, with their calls in order."""

from __future__ import annotations

import argparse
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import StoppingCriteriaList

import llava
from llava.constants import (
    DEFAULT_IMAGE_TOKEN,
    IGNORE_INDEX,
    IMAGE_TOKEN_INDEX,
)
from llava.conversation import conv_templates
from llava.mm_utils import (
    KeywordsStoppingCriteria,
    get_model_name_from_path,
    process_images,
    tokenizer_image_token,
)
from llava.model.builder import load_pretrained_model
from llava.utils import disable_torch_init

KEYS = ("llava-tiny-v1.5", "llava-tiny-v1.6", "llava-tiny-v1.6-mistral", "llava-tiny-mpt")


def sample_image(width=70, height=40, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


# ------------------------------------------------------------------------------------------------ lmms-eval


class LmmsEval:
    """Loads, answers in batches, and rates given answers, with the calls of lmms-eval's `llava` model."""

    def __init__(self, pretrained, device_map="cpu", conv_template="vicuna_v1", use_cache=True):
        self.device, self.use_cache, self.conv_template = torch.device(device_map), use_cache, conv_template
        arguments = {"multimodal": True, "attn_implementation": "sdpa"}
        name = get_model_name_from_path(pretrained)
        try:
            loaded = load_pretrained_model(pretrained, None, name, device_map=device_map, **arguments)
        except TypeError:  # code of the original, which does not know the word
            arguments.pop("multimodal")
            loaded = load_pretrained_model(pretrained, None, name, device_map=device_map, **arguments)
        self.tokenizer, self.model, self.image_processor, self.max_length = loaded
        self.config = self.model.config
        self.model.eval()
        self.model.tie_weights()
        self.model.to(self.device)

    def pixels(self, visuals):
        values = process_images(visuals, self.image_processor, self.config)
        if type(values) is list:
            return [one.to(dtype=torch.float16, device=self.device) for one in values]
        return values.to(dtype=torch.float16, device=self.device)

    def pad_sequence(self, rows, padding_value):
        flip = self.tokenizer.padding_side == "left"
        rows = [torch.flip(row, [0]) for row in rows] if flip else rows
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding_value)
        return torch.flip(padded, [1]) if flip else padded

    def prompt(self, context, visuals, answer=None):
        if visuals and DEFAULT_IMAGE_TOKEN not in context:
            context = " ".join([DEFAULT_IMAGE_TOKEN] * len(visuals)) + "\n" + context
        conv = conv_templates[self.conv_template].copy()
        conv.append_message(conv.roles[0], context)
        conv.append_message(conv.roles[1], None)
        if answer is not None:
            conv.messages[1][1] = answer
        return conv.get_prompt()

    def ids(self, prompt):
        return tokenizer_image_token(prompt, self.tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt")

    def generate_until(self, contexts, visuals, **gen_kwargs):
        """One list of visuals a context, or all contexts without any."""
        sample_images = [one for row in visuals for one in row]
        image_tensor = self.pixels(sample_images) if sample_images else None
        sizes = [one.size for one in sample_images]
        rows = [self.ids(self.prompt(text, row)) for text, row in zip(contexts, visuals, strict=True)]
        pad = self.tokenizer.pad_token_id
        pad = self.tokenizer.eos_token_id if pad is None else pad
        input_ids = self.pad_sequence(rows, pad).to(self.device)
        temperature = gen_kwargs.get("temperature", 0)
        answers = self.model.generate(
            input_ids,
            attention_mask=input_ids.ne(pad).to(self.device),
            pad_token_id=pad,
            images=image_tensor,
            image_sizes=sizes,
            do_sample=temperature > 0,
            temperature=temperature,
            top_p=gen_kwargs.get("top_p"),
            num_beams=gen_kwargs.get("num_beams", 1),
            max_new_tokens=gen_kwargs.get("max_new_tokens", 8),
            use_cache=self.use_cache,
        )
        return self.tokenizer.batch_decode(answers, skip_special_tokens=True), answers

    def loglikelihood(self, context, visuals, continuation):
        """Loss of a given answer, and whether it is what greedy decoding says."""
        image = self.pixels(visuals) if visuals else None
        context_ids = self.ids(self.prompt(context, visuals)).unsqueeze(0).to(self.device)
        input_ids = self.ids(self.prompt(context, visuals, continuation)).unsqueeze(0).to(self.device)
        labels = input_ids.clone()
        labels[0, : context_ids.shape[1]] = IGNORE_INDEX
        with torch.inference_mode():
            outputs = self.model(
                input_ids=input_ids,
                labels=labels,
                images=image,
                use_cache=True,
                image_sizes=[one.size for one in visuals],
            )
        loss, logits = outputs["loss"], outputs["logits"]
        greedy = logits.argmax(dim=-1)[:, context_ids.shape[1] : input_ids.shape[1]]
        return float(loss.item()), bool((greedy == input_ids[:, context_ids.shape[1] :]).all()), logits

    def encode(self, text, left_truncate_len=None):
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return ids[-left_truncate_len:] if left_truncate_len else ids


@pytest.fixture(scope="module")
def lmms(checkpoints):
    """The double on each checkpoint, loaded once."""
    made = {}

    def get(key):
        if key not in made:
            template = {"llava-tiny-v1.6-mistral": "mistral_instruct", "llava-tiny-mpt": "mpt"}.get(
                key, "vicuna_v1"
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made[key] = LmmsEval(str(checkpoints / key), conv_template=template)
        return made[key]

    return get


@pytest.mark.parametrize("key", KEYS)
def test_lmms_eval_answers_a_batch_as_one_by_one(key, lmms):
    """Questions of different lengths in one padded batch; temperature 0 and top_p None together."""
    harness = lmms(key)
    harness.model.float()
    questions = ["What?", "Which digit is written in this picture, and which is larger?", "Read it."]
    visuals = [[sample_image(seed=1)], [sample_image(40, 90, seed=2)], [sample_image(seed=3)]]
    options = {"max_new_tokens": 6, "temperature": 0, "top_p": None, "num_beams": 1}
    for side in ("right", "left"):
        harness.tokenizer.padding_side = side
        texts, ids = harness.generate_until(questions, visuals, **options)
        assert ids.shape[0] == 3 and ids.shape[1] <= 6  # the new tokens only
        for row, (question, one) in enumerate(zip(questions, visuals, strict=True)):
            alone, _ = harness.generate_until([question], [one], **options)
            assert alone == [texts[row]]


def test_lmms_eval_without_images_and_with_beams(lmms):
    harness = lmms("llava-tiny-v1.5")
    texts, ids = harness.generate_until(["Say something.", "No."], [[], []], max_new_tokens=4)
    assert len(texts) == len(ids) == 2
    assert harness.generate_until(["Hi"], [[sample_image()]], num_beams=3, max_new_tokens=4)[1].shape[0] == 1
    sampled = harness.generate_until(["Hi"], [[sample_image()]], temperature=0.7, top_p=0.9, max_new_tokens=4)
    assert sampled[1].shape[0] == 1
    several = harness.generate_until(
        ["Compare."], [[sample_image(seed=1), sample_image(seed=2)]], max_new_tokens=4
    )
    assert several[1].shape[0] == 1


@pytest.mark.parametrize("key", KEYS)
def test_lmms_eval_rates_an_answer(key, lmms):
    harness = lmms(key)
    harness.model.float()
    loss, is_greedy, logits = harness.loglikelihood("What is it?", [sample_image()], "a cat")
    assert np.isfinite(loss)
    assert is_greedy in (True, False)
    assert logits.shape[1] > 20  # the image's features count
    other, _, _ = harness.loglikelihood("What is it?", [sample_image(seed=9)], "a cat")
    assert other != loss
    without, _, _ = harness.loglikelihood("What is it?", [], "a cat")
    assert without != loss


def test_lmms_eval_reads_config_and_tokenizer(lmms):
    harness = lmms("llava-tiny-v1.5")
    assert harness.config.__dict__["mm_vision_tower"]
    assert harness.max_length == 2048
    assert harness.encode("some words here", left_truncate_len=2) == harness.encode("some words here")[-2:]
    assert harness.tokenizer.decode(harness.encode("words")) == "words"
    assert harness.model.get_vision_tower().image_processor is harness.image_processor


# ----------------------------------------------------------------------------------------------- VLMEvalKit


class VLMEvalKit:
    """Loads on the CPU, moves, and asks with keywords to stop at, as VLMEvalKit's `LLaVA` does."""

    def __init__(self, model_path, dtype=torch.float16, **kwargs):
        disable_torch_init()
        self.stop_str = "</s>"
        loaded = load_pretrained_model(
            model_path=model_path,
            model_base=None,
            model_name=get_model_name_from_path(model_path),
            device_map="cpu",
        )
        self.tokenizer, self.model, self.image_processor, self.context_len = loaded
        self.model = self.model.to("cpu", dtype)  # .cuda() where there is one
        self.dtype = dtype
        defaults = {"do_sample": False, "temperature": 0, "max_new_tokens": 6, "top_p": None}
        self.kwargs = {**defaults, "num_beams": 1, "use_cache": True, **kwargs}

    def generate(self, message):
        """Answer a message: images and texts in any order."""
        content, images = "", []
        for one in message:
            if isinstance(one, str):
                content += one
            else:
                content += f" {DEFAULT_IMAGE_TOKEN} "
                images.append(one.convert("RGB"))
        args = types.SimpleNamespace()
        args.image_aspect_ratio = "pad"  # nothing else
        image_tensor = None
        if images:
            image_tensor = process_images(images, self.image_processor, args).to("cpu", dtype=self.dtype)
        prompt = "A chat between a human and an assistant. USER: " + content + " ASSISTANT: "
        input_ids = tokenizer_image_token(prompt, self.tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt")
        input_ids = input_ids.unsqueeze(0)
        criteria = KeywordsStoppingCriteria([self.stop_str], self.tokenizer, input_ids)
        with torch.inference_mode():
            output_ids = self.model.generate(
                input_ids, images=image_tensor, stopping_criteria=[criteria], **self.kwargs
            )
        return self.tokenizer.batch_decode(output_ids, skip_special_tokens=True)[0].strip(), output_ids


@pytest.fixture(scope="module")
def kit(checkpoints):
    return VLMEvalKit(str(checkpoints / "llava-tiny-v1.5"), torch.float32)


def test_vlmevalkit_asks_about_no_one_or_several_images(kit):
    answers = []
    for message in (
        ["Hello"],
        [sample_image(), "What?"],
        [sample_image(seed=1), sample_image(30, 50, seed=2), "Compare."],
    ):
        text, ids = kit.generate(message)
        assert isinstance(text, str)
        assert 1 <= ids.shape[1] <= 6
        answers.append(ids.tolist())
    assert kit.generate(["Hello"])[1].tolist() == answers[0]


def test_images_with_a_config_of_one_attribute(kit):
    sample_images = [sample_image(), sample_image(20, 60)]
    for config in (
        argparse.Namespace(image_aspect_ratio="pad"),
        type("Args", (), {"image_aspect_ratio": "pad"}),
    ):
        values = process_images(sample_images, kit.image_processor, config)
        assert torch.is_tensor(values) and values.shape == (2, 3, 56, 56)


def test_a_keyword_ends_a_short_answer(kit):
    """Generation from embeddings gives the criteria new ids only, fewer than the prompt has."""
    _, ids = kit.generate([sample_image(), "What?"])
    free = ids[0].tolist()
    for index in range(1, 4):
        word = kit.tokenizer.decode(free[index : index + 1]).strip()
        if not word or word in kit.tokenizer.decode(free[:index]):
            continue
        kit.stop_str = word
        stopped = kit.generate([sample_image(), "What?"])[1][0].tolist()
        kit.stop_str = "</s>"
        assert stopped == free[: len(stopped)]
        assert len(stopped) == index + 1
        return
    pytest.fail("no answer token to stop at; take another seed")


def test_the_criteria_go_into_transformers_own_list(kit):
    ids = tokenizer_image_token(
        "USER: Hello ASSISTANT:", kit.tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt"
    )
    criteria = KeywordsStoppingCriteria([kit.stop_str], kit.tokenizer, ids[None])
    new = kit.model.generate(ids[None], stopping_criteria=StoppingCriteriaList([criteria]), **kit.kwargs)
    assert torch.equal(new, kit.model.generate(ids[None], **kit.kwargs))


def test_the_package_has_a_path():
    """VLMEvalKit looks into the package's folder to tell the project's versions apart."""
    assert (Path(llava.__path__[0]) / "model" / "builder.py").is_file()


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_word_of_the_prompt_does_not_end_a_short_answer(kit, length):
    """The prompt contains the keyword; the answer, of 1 to 3 tokens, does not."""
    prompt = tokenizer_image_token(
        "USER: <image>\nstop or go? ASSISTANT:", kit.tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt"
    )[None]
    criteria = KeywordsStoppingCriteria(["stop"], kit.tokenizer, prompt)
    answer = torch.tensor([kit.tokenizer("yes it is", add_special_tokens=False).input_ids[:length]])
    assert not criteria(answer, None).any()
