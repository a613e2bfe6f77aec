"""Chat templates of common families, written by us from their documentation: only what matters for tokens.

Each family: its template, its special tokens (the first one begins, the second ends a text), and what differs from
`apply_chat_template` with the reason; nothing differs where that is empty.
"""

from __future__ import annotations

from dataclasses import dataclass

LOOP = "{% for m in messages %}"
END = "{% endfor %}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
ALTERNATE = ("{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
             "{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% endfor %}")
CHATML = (LOOP + "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}" + END
          + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")
QWEN3 = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}{% if m.role == 'assistant' %}{% set c = m.content %}"
    "{% set think = m.reasoning_content | default('') %}{% if '</think>' in c %}"
    "{% set think = c.split('</think>')[0].split('<think>')[-1] %}{% set c = c.split('</think>')[-1].lstrip('\\n') %}"
    "{% endif %}{{ '<|im_start|>assistant\\n' }}{% if loop.index0 > ns.last %}"
    "{{ '<think>\\n' + think.strip('\\n') + '\\n</think>\\n\\n' }}{% endif %}{{ c + '<|im_end|>\\n' }}{% else %}"
    "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% if enable_thinking is defined and not "
    "enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}")
LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set sys = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set sys = '' %}{% set rest = messages %}{% endif %}{% for m in rest %}"
    "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + (sys if loop.first else '') + m.content | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content | trim + ' ' + eos_token }}{% endif %}{% endfor %}")
LLAMA3 = ("{{ bos_token }}" + LOOP + "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim "
          "+ '<|eot_id|>' }}" + END
          + "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}")
MISTRAL1 = ("{{ bos_token }}" + ALTERNATE + LOOP + "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
            "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}" + END)
MISTRAL3 = (
    "{% if messages[0].role == 'system' %}{% set sys = messages[0].content %}{% set rest = messages[1:] %}{% else %}"
    "{% set sys = none %}{% set rest = messages %}{% endif %}{{ bos_token }}{% for m in rest %}"
    "{% if m.role == 'user' %}{{ '[INST]' + BETWEEN }}"
    "{% if sys and loop.index0 >= rest | length - 2 %}{{ sys + '\\n\\n' }}{% endif %}"
    "{{ m.content + '[/INST]' }}{% else %}{{ BETWEEN + m.content | trim + eos_token }}{% endif %}{% endfor %}")
GEMMA = ("{{ bos_token }}" + NO_SYSTEM + ALTERNATE + LOOP + "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' "
         "else m.role) + '\\n' + m.content | trim + '<end_of_turn>\\n' }}" + END
         + "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}")
GEMMA4 = ("{{ bos_token }}" + LOOP + "{{ '<|turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' "
          "+ m.content | trim + '<turn|>\\n' }}" + END
          + "{% if add_generation_prompt %}{{ '<|turn>model\\n' }}{% endif %}")
PHI3 = (LOOP + "{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}" + END
        + "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}")
PHI4 = (LOOP + "{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}" + END
        + "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}")
ZEPHYR = (LOOP + "{{ '<|' + m.role + '|>\\n' + m.content + eos_token + '\\n' }}" + END
          + "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}")
GLM4 = ("[gMASK]<sop>" + LOOP + "{{ '<|' + m.role + '|>\\n' + m.content }}" + END
        + "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}")
HARMONY = (
    LOOP + "{% if m.role == 'assistant' %}{% if m.thinking and loop.last %}"
    "{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{% endif %}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + ('<|return|>' if loop.last else '<|end|>') }}"
    "{% else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}" + END
    + "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}")
R1 = ("{{ bos_token }}" + LOOP + "{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}"
      "{{ '<|User|>' + m.content }}{% else %}"
      "{{ '<|Assistant|>' + m.content.split('</think>')[-1] + eos_token }}{% endif %}"
      + END + "{% if add_generation_prompt %}{{ '<|Assistant|><think>\\n' }}{% endif %}")
ERNIE = ("{{ bos_token }}" + LOOP + "{% if m.role == 'system' %}{{ m.content + '\\n' }}{% elif m.role == 'user' %}"
         "{{ 'User: ' + m.content + '\\n' }}{% else %}"
         "{{ 'Assistant: ' + m.content + '<|end_of_sentence|>' }}{% endif %}"
         + END + "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}")


@dataclass(frozen=True)
class Family:
    """A family's template, its special tokens, and where it differs from apply_chat_template."""

    template: str
    special: tuple[str, ...]
    ends: str
    """What closes an answer."""
    differs: str = ""
    """Why what stands before an answer is not all of what apply_chat_template asks with."""
    folds: bool = False
    """The system text goes into the first question."""


IM = ("<|endoftext|>", "<|im_end|>", "<|im_start|>")
FAMILIES = {
    "llama 2": Family(LLAMA2, ("<s>", "</s>"), "</s>"),
    "llama 3": Family(LLAMA3, ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
                      "<|eot_id|>"),
    "qwen 2.5": Family(CHATML, IM, "<|im_end|>"), "qwen 3": Family(QWEN3, IM, "<|im_end|>"),
    "mistral 0.1": Family(MISTRAL1, ("<s>", "</s>"), "</s>", folds=True),
    "mistral 0.3": Family(MISTRAL3.replace("BETWEEN", "' '"), ("<s>", "</s>", "[INST]", "[/INST]"), "</s>"),
    "mistral nemo": Family(MISTRAL3.replace("BETWEEN", "''"), ("<s>", "</s>", "[INST]", "[/INST]"), "</s>"),
    "gemma 2": Family(GEMMA, ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), "<end_of_turn>", folds=True),
    "gemma 4": Family(GEMMA4, ("<bos>", "<eos>", "<|turn>", "<turn|>"), "<turn|>"),
    "phi 3": Family(PHI3, ("<s>", "<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"), "<|end|>"),
    "phi 4": Family(PHI4, ("<|endoftext|>", "<|im_end|>", "<|im_start|>", "<|im_sep|>"), "<|im_end|>"),
    "zephyr": Family(ZEPHYR, ("<s>", "</s>"), "</s>"),
    "glm 4": Family(GLM4, ("<sop>", "<|endoftext|>", "[gMASK]", "<|user|>", "<|assistant|>", "<|system|>"), "<|user|>"),
    "harmony": Family(HARMONY, ("<|startoftext|>", "<|return|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>"),
                      "<|return|>"),
    "deepseek r1": Family(R1, ("<|begin|>", "<|end|>", "<|User|>", "<|Assistant|>"), "<|end|>",
                          "the prompt opens a thought that the whole conversation does not show"),
    "ernie": Family(ERNIE, ("<s>", "</s>", "<|end_of_sentence|>"), "<|end_of_sentence|>")}
