"""Chat formats of other families, as templates written here from their published rules."""

CHATML = (
    "{%- for turn in messages -%}"
    "{%- if loop.first and turn.role != 'system' -%}"
    "<|im_start|>system\nYou help.<|im_end|>\n"
    "{%- endif -%}"
    "{{ '<|im_start|>' + turn.role + '\n' + turn.content + '<|im_end|>' + '\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)

# The answer and its end of turn are marked as what the model writes.
HERMES = (
    "{{ bos_token }}{% for turn in messages %}"
    "{{ '<|im_start|>' + turn['role'] + '\n' }}"
    "{% if turn['role'] == 'assistant' %}"
    "{% generation %}{{ turn['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ turn['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% set said, rest = messages[0]['content'], messages[1:] %}"
    "{% else %}{% set said, rest = none, messages %}{% endif %}"
    "{% for turn in rest %}"
    "{% if (turn['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('user and assistant must take turns') }}{% endif %}"
    "{% if turn['role'] == 'user' %}"
    "{% set before = '<<SYS>>\n' + said + '\n<</SYS>>\n\n' if said and loop.first else '' %}"
    "{{ bos_token + '[INST] ' + before + turn['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + turn['content'].strip() + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)

ZEPHYR = (
    "{% for turn in messages %}\n"
    "{% if turn['role'] in ('user', 'system') %}\n"
    "{{ '<|' + turn['role'] + '|>\n' + turn['content'] + eos_token }}\n"
    "{% elif turn['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\n' + turn['content'] + eos_token }}\n"
    "{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n"
    "{{ '<|assistant|>' }}\n"
    "{% endif %}\n"
    "{% endfor %}"
)

MISTRAL = (
    "{% set rest = messages %}{% set said = '' %}"
    "{% if messages[0].role == 'system' %}"
    "{% set rest = messages[1:] %}{% set said = messages[0].content + '\n\n' %}{% endif %}"
    "{{ bos_token }}{% for turn in rest %}"
    "{% if turn.role == 'user' %}"
    "{{ '[INST] ' + (said if loop.index0 == rest | length - 1 or loop.last else '') }}"
    "{{ turn.content + '[/INST]' }}"
    "{% elif turn.role == 'assistant' %}{{ ' ' + turn.content + eos_token }}"
    "{% else %}{{ raise_exception('only user, system and assistant are known') }}{% endif %}"
    "{% endfor %}"
)

# Traces leave the history, and the answer's own is opened for the model.
R1 = (
    "{% set ns = namespace(said='') %}{{ bos_token }}"
    "{% for turn in messages %}{% if turn.role == 'system' %}{% set ns.said = turn.content %}"
    "{% endif %}{% endfor %}{{ ns.said }}"
    "{% for turn in messages %}"
    "{% if turn.role == 'user' %}{{ '<\uff5cUser\uff5c>' + turn.content }}"
    "{% elif turn.role == 'assistant' %}"
    "{% set text = turn.content.split('</think>') | last if '</think>' in turn.content"
    " else turn.content %}"
    "{{ '<\uff5cAssistant\uff5c>' + text + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<\uff5cAssistant\uff5c><think>\n' }}{% endif %}"
)

LLAMA_3_1 = (
    "{{ bos_token }}"
    "{% if messages[0].role == 'system' %}{% set said = messages[0].content | trim %}"
    "{% set rest = messages[1:] %}{% else %}{% set said = '' %}{% set rest = messages %}{% endif %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\n' }}"
    "{% if tools is not none %}{{ 'Environment: ipython\n' }}{% endif %}"
    "{{ 'Today: ' + (today | default('26 Jul 2024')) + '\n\n' + said + '<|eot_id|>' }}"
    "{% for turn in rest %}"
    "{% if turn.role == 'user' and loop.first and tools is not none %}"
    "{{ '<|start_header_id|>user<|end_header_id|>\n\n' }}"
    "{% for tool in tools %}{{ tool | tojson(indent=4) + '\n\n' }}{% endfor %}"
    "{{ turn.content | trim + '<|eot_id|>' }}"
    "{% elif turn.role == 'tool' %}"
    "{{ '<|start_header_id|>ipython<|end_header_id|>\n\n' + turn.content | tojson + '<|eot_id|>' }}"
    "{% elif turn.tool_calls is defined %}"
    "{% if turn.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}"
    "{% set call = turn.tool_calls[0].function %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{{ '{\"name\": \"' + call.name + '\", \"parameters\": ' + (call.arguments | tojson) + '}' }}"
    "{{ '<|eot_id|>' }}"
    "{% else %}"
    "{{ '<|start_header_id|>' + turn.role + '<|end_header_id|>\n\n' + turn.content | trim }}"
    "{{ '<|eot_id|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
