"""`python -m llava.conversation` prints the prompt of an empty dialog in the default template."""

from llava import conversation

if __name__ == "__main__":
    print(conversation.default_conversation.get_prompt())
