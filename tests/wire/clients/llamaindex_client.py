"""LlamaIndex's OpenAI client: one streaming, one tool, one structured case."""

import json
import sys

from llama_index.core.llms import ChatMessage, MessageRole
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai import OpenAI
from pydantic import BaseModel


class Answer(BaseModel):
    """What the structured case asks for."""

    answer: int


def weather(city: str) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


asked = json.load(sys.stdin)
llm = OpenAI(
    api_base=asked["baseURL"], api_key=asked["apiKey"], model=asked["model"], max_retries=0
)
messages = [
    ChatMessage(role=MessageRole.SYSTEM, content=asked["system"]),
    ChatMessage(role=MessageRole.USER, content=asked["prompt"]),
]

text, finish = "", None
for part in llm.stream_chat(messages):
    text += part.delta or ""
    finish = part.raw.choices[0].finish_reason if part.raw.choices else finish
streaming = {"text": text, "finish": finish, "output": None}

tool = FunctionTool.from_defaults(fn=weather)
call = llm.chat_with_tools([tool], chat_history=messages)
made = llm.get_tool_calls_from_response(call)
results = [str(tool(**one.tool_kwargs)) for one in made]
history = [
    ChatMessage(
        role=MessageRole.TOOL, content=result, additional_kwargs={"tool_call_id": one.tool_id}
    )
    for one, result in zip(made, results, strict=True)
]
last = llm.chat_with_tools([tool], chat_history=[*messages, call.message, *history])
tools = {
    "calls": [[one.tool_name, one.tool_kwargs] for one in made],
    "results": results,
    "text": last.message.content,
}

parsed = llm.as_structured_llm(Answer).chat(messages).raw
print(json.dumps({"streaming": streaming, "tools": tools, "structured": parsed.model_dump()}))
