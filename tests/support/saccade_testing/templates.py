"""Chat templates in the styles of published ones, cut down to what their tests need."""

TOOLS = """\
{%- for message in messages -%}
{%- if message.role == 'assistant' and message.tool_calls -%}
{{ '<|im_start|>assistant\n' + message.content }}
{%- for call in message.tool_calls -%}
{{ '<tool_call>' + call.function.name }} {{ call.function.arguments | tojson }}
{%- endfor -%}{{ '<|im_end|>\n' }}
{%- elif message.role == 'tool' -%}
{{ '<|im_start|>user\n<tool_response>' + message.content + '</tool_response><|im_end|>\n' }}
{%- else -%}
{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and enable_thinking is false -%}
{{ '<think>\n\n</think>\n\n' }}{%- endif -%}{%- endif -%}"""
"""As Qwen3's: calls with arguments as objects, results, a switch for thinking."""

TEXT_ARGUMENTS = """\
{%- for message in messages -%}
{{ message['role'] + ': ' + (message['content'] or '') }}
{%- for call in message['tool_calls'] or [] -%}
{{ ' call ' + call['function']['name'] + ' ' + call['function']['arguments'] }}
{%- endfor -%}{{ '\n' }}
{%- endfor -%}"""
"""As DeepSeek V3's: arguments are put together with text."""

SHORT_IDS = """\
{%- for message in messages -%}
{%- if message.tool_calls is defined -%}
{%- for call in message.tool_calls -%}
{%- if call.id is undefined or call.id | length != 9 -%}
{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}
{%- endif -%}
{{ '[CALLS] ' + (call.function | tojson) + ' ' + call.id }}
{%- endfor -%}
{%- elif message.role == 'tool' -%}
{{ '[RESULTS] ' + message.content + ' ' + message.tool_call_id }}
{%- else -%}{{ '[INST] ' + message.content }}{%- endif -%}
{{ '\\n' }}
{%- endfor -%}"""
"""As Mistral's: ids of calls have nine letters and digits."""

ALTERNATING = """\
{%- for message in messages -%}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('Roles must alternate user/assistant') }}
{%- endif -%}
{{ '[INST] ' + message['content'] + ' [/INST]' if message['role'] == 'user'
   else message['content'] + '\n' }}
{%- endfor -%}"""
"""As Llama 2's: users and assistants take turns, and nobody else speaks."""

HOISTING = """\
{%- for message in messages -%}{{ message['role'] + ': ' }}
{%- for part in message['content'] if part['type'] == 'image' -%}<image>{%- endfor -%}
{%- for part in message['content'] if part['type'] == 'text' -%}{{ part['text'] }}{%- endfor -%}
{{ '\n' }}{%- endfor -%}"""
"""As LLaVA's: images before all texts."""

SPACED = """\
{%- for message in messages -%}{{ message['role'] + ': ' }}
{%- for part in message['content'] -%}
{{- '<image>' if part['type'] == 'image' else part['text'] }} {% endfor -%}
{{ '\n' }}{%- endfor -%}"""
"""Puts something between texts itself."""

NAMING = """\
{%- for message in messages -%}
{{ message.role + (' ' + message.name if message.name else '') + ': ' }}
{%- if message.reasoning_content -%}{{ '(' + message.reasoning_content + ') ' }}{%- endif -%}
{{ message.content | trim + '\n' }}
{%- endfor -%}"""
"""Reads names and reasoning, and trims what is said."""

THOUGHTS = """\
{%- for message in messages -%}
{%- set said = message.content -%}{%- set thought = message.reasoning_content or '' -%}
{%- if '</think>' in said -%}
{%- set thought = said.split('</think>')[0].split('<think>')[-1] -%}
{%- set said = said.split('</think>')[-1] -%}
{%- endif -%}
{{ '<|im_start|>' + message.role + '\n' }}
{%- if message.role == 'assistant' and loop.last -%}
{{ '<think>\n' + thought.strip('\n') + '\n</think>\n\n' + said.lstrip('\n') }}
{%- else -%}{{ said.lstrip('\n') }}{%- endif -%}{{ '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and enable_thinking is false -%}
{{ '<think>\n\n</think>\n\n' }}{%- endif -%}{%- endif -%}"""
"""As Qwen3's: thoughts of the last turn alone are written, whichever field has them."""

BEGUN = (
    THOUGHTS.split("{%- if add_generation_prompt")[0]
    + "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n<think>\n' }}{%- endif -%}"
)
"""As those of models that always think: the prompt opens the reasoning."""

STRIPPED = """\
{%- for message in messages -%}
{%- set said = message['content'] -%}
{%- if '</think>' in said -%}{%- set said = said.split('</think>')[-1] -%}{%- endif -%}
{{ '[' + message['role'] + ']' + said }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '[assistant]' }}{%- endif -%}"""
"""As DeepSeek R1's first: thoughts are taken out of histories, and never opened."""

BRACKETS = """\
{%- if messages[0].role != 'system' -%}
{{ 'Draft your thinking as in [THINK]thoughts[/THINK] first.' }}{%- endif -%}
{%- for message in messages -%}{{ '[INST]' + message.content + '[/INST]' }}{%- endfor -%}"""
"""As Magistral's: the markers are special tokens, which the system prompt shows."""

ARGUMENTS_FIRST = """\
{{- bos_token }}
{%- if tools -%}{{ 'Tools: <tools>' }}
{%- for tool in tools -%}{{ tool.function | tojson }}{%- endfor -%}{{ '</tools>\n' }}{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'assistant' and message.tool_calls is defined -%}
{{ '<|im_start|>assistant' }}
{%- for call in message.tool_calls -%}
{{ '\n<tool_call>\n{ "arguments": ' + (call.function.arguments | tojson) }}
{{- ', "name": "' + call.function.name + '"}\n</tool_call> ' }}
{%- endfor -%}{{ '<|im_end|>\n' }}
{%- elif message.role == 'tool' -%}
{{ '<|im_start|>tool\n{"name": "' + message.name + '", "content": ' }}
{{- (message.content | tojson) + '} <|im_end|>\n' }}
{%- else -%}
{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endif -%}
{%- endfor -%}
{{- '<|im_start|>assistant\n' if add_generation_prompt }}"""
"""As Hermes 2 Pro's: the name of a call stands behind its arguments."""

LISTED_CALLS = """\
{%- if tools -%}{{ '[TOOLS] ' + (tools | tojson) }}{%- endif -%}
{%- for message in messages -%}
{%- if message.tool_calls -%}{{ '[CALLS] [' }}
{%- for call in message.tool_calls -%}
{{ '{"name": "' + call.function.name + '", "arguments": ' }}
{{- (call.function.arguments | tojson) + '}' + (', ' if not loop.last else '') }}
{%- endfor -%}{{ ']' + eos_token }}
{%- elif message.role == 'tool' -%}{{ '[RESULT] ' + message.content }}
{%- elif message.role == 'assistant' -%}{{ message.content + eos_token }}
{%- else -%}{{ '[INST] ' + message.content + '[/INST] ' }}{%- endif -%}
{%- endfor -%}"""
"""As Granite's and Mistral's: one list of all calls."""
