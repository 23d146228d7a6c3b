"""LangChain's OpenAI client: one streaming, one tool, one structured case."""

import json
import sys

from langchain_core.messages import AIMessageChunk, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel


class Answer(BaseModel):
    """What the structured case asks for."""

    answer: int


def forecast(city: str) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


weather = tool("weather", forecast)

asked = json.load(sys.stdin)
chat = ChatOpenAI(
    base_url=asked["baseURL"],
    api_key=asked["apiKey"],
    model=asked["model"],
    max_retries=0,
    stream_usage=True,
)
messages = [("system", asked["system"]), ("user", asked["prompt"])]

whole = AIMessageChunk("")
for chunk in chat.stream(messages):
    whole += chunk
usage = whole.usage_metadata or {}
streaming = {
    "text": whole.content,
    "finish": whole.response_metadata.get("finish_reason"),
    "output": usage.get("output_tokens"),
}

bound = chat.bind_tools([weather])
call = bound.invoke(messages)
results = [weather.invoke(made["args"]) for made in call.tool_calls]
history = [
    ToolMessage(r, tool_call_id=c["id"]) for r, c in zip(results, call.tool_calls, strict=True)
]
tools = {
    "calls": [[made["name"], made["args"]] for made in call.tool_calls],
    "results": results,
    "text": bound.invoke([*messages, call, *history]).content,
}

parsed = chat.with_structured_output(Answer, method="json_schema").invoke(messages)
print(json.dumps({"streaming": streaming, "tools": tools, "structured": parsed.model_dump()}))
