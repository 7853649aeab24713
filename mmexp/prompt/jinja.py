"""A chat template as the Jinja template that transformers stores beside a tokenizer (`chat_template.jinja`)."""

from __future__ import annotations

import json

from mmexp.errors import ConfigError
from mmexp.prompt.format import PIECE, Piece, parse_format
from mmexp.prompt.template import ChatTemplate
from mmexp.prompt.tokenizer import SegmentTokenizer

PLACEHOLDER = "<image>"
_ROLE_CONTROLS = {"bos": "bos_token", "eos": "eos_token"}
_TEXT_MACRO = (
    "{%- macro write(text) -%}{{- (' ' if ns.fresh and text and not text.startswith(' ') else '') + text -}}"
    "{%- if text -%}{%- set ns.fresh = false -%}{%- set ns.any = true -%}{%- endif -%}{%- endmacro -%}"
)
_WORDS = "selectattr('type', 'equalto', 'text') | map(attribute='text') | join('')"


def to_jinja(template: ChatTemplate, tokenizer: SegmentTokenizer, placeholder: str = PLACEHOLDER) -> str:
    """The Jinja template whose `tokenizer.apply_chat_template` gives the ids of `template`.

    Messages hold `role` and `content`, a text or a list of parts of type `text` and `image`. The result is one string
    that is tokenised as a whole: where a template tokenises a part on its own and the tokenizer then puts its prefix
    space, a space is written. Special tokens in what people say become control tokens there, which this package itself
    prevents. Boxes are no parts of messages, and `max_answer_tokens` cuts training samples only.

    Args:
        template: What to write down.
        tokenizer: The one it is for.
        placeholder: What stands where the slots of a medium go.

    Raises:
        ConfigError: the template draws among prompts, or a part is tokenised apart behind a space (one string would
            hold two spaces there, which are one token).
    """
    if template.prompts:
        raise ConfigError(
            f"{template.name} draws one of {len(template.prompts)} prompts per sample, which Jinja cannot express",
            expected="a template whose text follows from the conversation",
            where="template.prompts",
            fix="template.prompts=[] and write the instruction into the user turn",
        )
    if template.splits_answers:
        raise ConfigError(
            f"{template.name} moves the first words of an answer to its prompt, which only training does",
            expected="an assistant_prompt without {prefix}",
            where="template.assistant_prompt",
        )
    before = (template.assistant_prompt or template.user)[-1:]
    if tokenizer.puts_prefix_space and before == " " and template.assistant_answer.startswith(f"{{{PIECE}}}"):
        raise ConfigError(
            f"{template.name} tokenises its answer apart from the space before it, which one string cannot express",
            expected="an answer format without {piece} behind a space, for a tokenizer that puts a prefix space",
            where="template.assistant_answer",
            fix="serve the model with mmexp.chat, or leave out the space or {piece} when you train it",
        )
    return _Writer(template, tokenizer.puts_prefix_space, placeholder).whole()


class _Writer:
    """Writes the parts of one Jinja template; no line break stands outside of a string."""

    def __init__(self, template: ChatTemplate, prefix_space: bool, placeholder: str) -> None:
        self.template, self.prefix_space, self.placeholder = template, prefix_space, placeholder

    def whole(self) -> str:
        template = self.template
        late, inside = template.begin_place == "after_media", template.system_place == "first_user"
        begin, system = self.fill(template.begin), self.system()
        end = self.when("not add_generation_prompt and rest and rest[-1].role == 'assistant'", self.fill(template.end))
        return "".join(
            (
                "{%- set ns = namespace(fresh=false, any=false, number=0, media=false) -%}",
                _TEXT_MACRO if self.prefix_space else "",
                self.read_messages(),
                "" if late else begin,
                "" if inside else system,
                "{%- for message in rest -%}{%- set content = message.content -%}",
                "{%- if message.role == 'user' and loop.index0 % 2 == 0 -%}",
                self.user(begin if late else "", system if inside else ""),
                "{%- elif message.role == 'assistant' and loop.index0 % 2 == 1 -%}",
                self.fill(template.assistant_prompt) + self.answer() + self.fill(template.assistant_end),
                "{%- else -%}{{- raise_exception('user and assistant in alternation, a system message only in front')"
                " -}}{%- endif -%}{%- endfor -%}",
                self.when("add_generation_prompt", self.fill(template.assistant_prompt)),
                end,
            )
        )

    def read_messages(self) -> str:
        """Sets `rest`, `system` (none for no system text) and `ns.media`."""
        default = self.template.default_system
        return (
            "{%- set rest = messages -%}"
            f"{{%- set system = {'none' if default is None else _literal(default)} -%}}"
            "{%- if messages and messages[0].role == 'system' -%}{%- set rest = messages[1:] -%}"
            "{%- set system = messages[0].content if messages[0].content is string else messages[0].content | "
            + _WORDS
            + " -%}{%- endif -%}{%- for message in rest -%}{%- if message.content is not string and "
            "message.content | rejectattr('type', 'equalto', 'text') | list -%}{%- set ns.media = true -%}"
            "{%- endif -%}{%- endfor -%}"
        )

    def system(self) -> str:
        said = "system | trim" if self.template.strip else "system"
        return self.when("system is not none", self.fill(self.template.system, self.text(said)))

    def user(self, begin: str, system: str) -> str:
        """One user turn, with what only the first one has."""
        template = self.template
        first = "" if template.media != "before_turn" else self.media_of_content()
        said = self.when("loop.first", system) + self.said_by_user()
        form = self.fill(template.user, said)
        if template.user_without_media is not None:
            form = self.when("ns.media", form, self.fill(template.user_without_media, said))
        if template.next_user is not None:
            form = self.when("loop.first", form, self.fill(template.next_user, said))
        return first + self.when("loop.first", begin) + form

    def said_by_user(self) -> str:
        """What stands at `{turn}` of a user turn."""
        template = self.template
        if template.user_text == "drop":
            return "" if template.media == "before_turn" else self.media_of_content()
        words = f"content | {_WORDS}"
        inline = self.inline()
        if template.media == "before_turn":
            inline = self.text(f"({words}) | trim")
        elif template.media == "first_if_single":
            one = (
                f"{{%- set words = ({words}) | trim -%}}"
                + self.medium()
                + self.when("words", self.text(_literal(template.media_separator)) + self.text("words"))
            )
            inline = self.when("content | rejectattr('type', 'equalto', 'text') | list | length == 1", one, inline)
        return self.when("content is string", self.text("content | trim" if template.strip else "content"), inline)

    def answer(self) -> str:
        plain = self.text("content | trim" if self.template.strip else "content")
        return self.fill(self.template.assistant_answer, self.when("content is string", plain, self.inline()))

    def inline(self) -> str:
        """Parts of a list in their order."""
        ends = (
            "{%- if loop.first -%}{%- set said = said.lstrip() -%}{%- endif -%}"
            "{%- if loop.last -%}{%- set said = said.rstrip() -%}{%- endif -%}"
        )
        newline = (
            "{%- if not loop.first and loop.previtem.type != 'text' and said.startswith('\\n') -%}"
            "{%- set said = said[1:] -%}{%- endif -%}"
        )
        text = "{%- set said = part.text -%}"
        text += ends if self.template.strip else ""
        text += newline if self.template.medium.endswith("\n") else ""
        both = self.when("part.type == 'text'", text + self.text("said"), self.medium())
        return f"{{%- for part in content -%}}{both}{{%- endfor -%}}"

    def media_of_content(self) -> str:
        media = "content | rejectattr('type', 'equalto', 'text')"
        return self.when("content is not string", f"{{%- for part in {media} -%}}{self.medium()}{{%- endfor -%}}")

    def medium(self) -> str:
        written = "{%- set ns.number = ns.number + 1 -%}"
        for piece in parse_format(self.template.medium):
            if piece == Piece("value", "number"):
                written += self.text("ns.number | string")
            elif piece.kind == "value":
                fresh = "true" if self.template.after_medium == "fresh" else "false"
                written += f"{{{{- {_literal(self.placeholder)} -}}}}" + self.mark(fresh)
            else:
                written += self.piece(piece)
        return written

    def fill(self, form: str, turn: str = "") -> str:
        return "".join(turn if piece.kind == "value" else self.piece(piece) for piece in parse_format(form))

    def piece(self, piece: Piece) -> str:
        if piece.kind == "text":
            return self.text(_literal(piece.value))
        if piece.kind == "switch":
            return "{%- set ns.fresh = ns.any -%}" if piece.value == PIECE and self.prefix_space else ""
        name = piece.value.removesuffix("?")
        token = _ROLE_CONTROLS.get(name) or _literal(name)
        written = f"{{{{- {token} -}}}}" + self.mark("not ns.any" if name == "bos" else "false")
        return self.when(token, written) if name != piece.value and name in _ROLE_CONTROLS else written

    def text(self, expression: str) -> str:
        return f"{{{{- write({expression}) -}}}}" if self.prefix_space else f"{{{{- {expression} -}}}}"

    def mark(self, fresh: str) -> str:
        """Remembers whether what follows starts a text of its own; of no use without a prefix space."""
        if not self.prefix_space:
            return ""
        return f"{{%- set ns.fresh = {fresh} -%}}{{%- set ns.any = true -%}}"

    @staticmethod
    def when(condition: str, yes: str, no: str = "") -> str:
        other = f"{{%- else -%}}{no}" if no else ""
        return f"{{%- if {condition} -%}}{yes}{other}{{%- endif -%}}" if yes or no else ""


def _literal(text: str) -> str:
    """A Jinja string; JSON's escapes are Jinja's."""
    return json.dumps(text, ensure_ascii=False)
