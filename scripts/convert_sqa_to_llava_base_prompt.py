"""The prompts of ScienceQA under the reference's names; they are made in llava/eval/scoring."""

from llava.eval.scoring.science_qa_prompts import (
    build_prompt_chatbot,
    get_answer,
    get_choice_text,
    get_context_text,
    get_lecture_text,
    get_question_text,
    get_solution_text,
)

__all__ = [
    "build_prompt_chatbot",
    "get_answer",
    "get_choice_text",
    "get_context_text",
    "get_lecture_text",
    "get_question_text",
    "get_solution_text",
]
