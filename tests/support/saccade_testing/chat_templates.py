"""Templates that write what Qwen3's and Llama 3.1's write around tools, calls and reasoning.

Every marker, key and line end is theirs, as a model was trained on it; the sentences are ours.
"""

QWEN3 = """\
{%- set asked = namespace(last=-1) -%}
{%- for message in messages if message.role == 'user' -%}
{%- set asked.last = messages.index(message) -%}
{%- endfor -%}
{%- set system = messages[0].content if messages and messages[0].role == 'system' else '' -%}
{%- if tools -%}
{{ '<|im_start|>system\n' }}
{{- system + '\n\n' if system }}
{{- '# Tools\n\nFunctions that you may call stand between <tools> and </tools>:\n<tools>' }}
{%- for tool in tools -%}
{{ '\n' + (tool | tojson) }}
{%- endfor -%}
{{ '\n</tools>\n\nCall one by its name with a JSON object of arguments:\n<tool_call>\n' }}
{{- '{"name": <name>, "arguments": <object>}\n</tool_call><|im_end|>\n' }}
{%- elif system -%}
{{ '<|im_start|>system\n' + system + '<|im_end|>\n' }}
{%- endif -%}
{%- for message in messages -%}
{%- set content = message.content if message.content is string else '' -%}
{%- if message.role == 'user' or (message.role == 'system' and not loop.first) -%}
{{ '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}
{%- elif message.role == 'assistant' -%}
{%- set reasoning = message.reasoning_content if message.reasoning_content is string else '' -%}
{%- if not reasoning and '</think>' in content -%}
{%- set reasoning = content.split('</think>')[0].split('<think>')[-1] -%}
{%- set content = content.split('</think>')[-1].lstrip('\n') -%}
{%- endif -%}
{{ '<|im_start|>assistant\n' }}
{%- if reasoning and loop.index0 > asked.last -%}
{{ '<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' }}
{%- endif -%}
{{ content }}
{%- for call in message.tool_calls or [] -%}
{%- set call = call.function or call -%}
{{ '\n' if content or not loop.first }}
{{- '<tool_call>\n{"name": "' + call.name + '", "arguments": ' }}
{{- call.arguments if call.arguments is string else call.arguments | tojson }}
{{- '}\n</tool_call>' }}
{%- endfor -%}
{{ '<|im_end|>\n' }}
{%- elif message.role == 'tool' -%}
{{ '<|im_start|>user' if loop.first or messages[loop.index0 - 1].role != 'tool' }}
{{- '\n<tool_response>\n' + content + '\n</tool_response>' }}
{{- '<|im_end|>\n' if loop.last or messages[loop.index0 + 1].role != 'tool' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\n' }}
{{- '<think>\n\n</think>\n\n' if enable_thinking is defined and enable_thinking is false }}
{%- endif -%}"""

QWEN3_THINKING = QWEN3.rpartition("{{- '<think>")[0] + "{{- '<think>\\n' }}\n{%- endif -%}"
"""As of Qwen3's models that always think: the prompt ends within the reasoning."""

LLAMA3 = """\
{%- set own = namespace(tools=tools, at=0, system='') -%}
{%- if custom_tools is defined -%}{%- set own.tools = custom_tools -%}{%- endif -%}
{%- if tools_in_user_message is not defined -%}
{%- set tools_in_user_message = true -%}
{%- endif -%}
{%- set asking -%}
{{ 'These are functions. Answer with JSON for a call of one of them, in the form {"name": ' }}
{{- 'its name, "parameters": an object of names and values}. Use no variables.\n\n' }}
{%- for tool in own.tools or [] -%}{{ tool | tojson(indent=4) + '\n\n' }}{%- endfor -%}
{%- endset -%}
{%- if messages and messages[0].role == 'system' -%}
{%- set own.system = messages[0].content | trim -%}
{%- set own.at = 1 -%}
{%- endif -%}
{{ bos_token + '<|start_header_id|>system<|end_header_id|>\n\n' }}
{{- 'Environment: ipython\n' if own.tools }}
{{- 'Today Date: ' + (date_string if date_string is defined else '26 Jul 2024') + '\n\n' }}
{{- asking if own.tools and not tools_in_user_message }}
{{- own.system + '<|eot_id|>' }}
{%- if own.tools and tools_in_user_message -%}
{%- if messages | length <= own.at -%}
{{ raise_exception('Tools stand in the first user message, and there is none.') }}
{%- endif -%}
{{ '<|start_header_id|>user<|end_header_id|>\n\n' + asking }}
{{- messages[own.at].content | trim + '<|eot_id|>' }}
{%- set own.at = own.at + 1 -%}
{%- endif -%}
{%- for message in messages[own.at:] -%}
{%- if message.role == 'tool' or message.role == 'ipython' -%}
{{ '<|start_header_id|>ipython<|end_header_id|>\n\n' }}
{{- message.content | tojson + '<|eot_id|>' }}
{%- elif message.tool_calls -%}
{%- if message.tool_calls | length != 1 -%}
{{ raise_exception('One call a message is all that this model makes.') }}
{%- endif -%}
{%- set call = message.tool_calls[0].function -%}
{{ '<|start_header_id|>assistant<|end_header_id|>\n\n{"name": "' + call.name + '", ' }}
{{- '"parameters": ' + (call.arguments | tojson) + '}<|eot_id|>' }}
{%- else -%}
{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' }}
{{- message.content | trim + '<|eot_id|>' }}
{%- endif -%}
{%- endfor -%}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' if add_generation_prompt }}"""
