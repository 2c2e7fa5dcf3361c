"""An instruction's modifiers, each of which some decoder has to take."""

from nvfp4.emulator import ptx


class Modifiers:
    """The modifiers that are left of an instruction: one that nobody takes is an error."""

    def __init__(self, instruction: ptx.Instruction, *expected: str) -> None:
        self._instruction = instruction
        self._left = list(instruction.modifiers)
        for modifier in expected:
            if not self.take(modifier):
                raise instruction.unsupported(f"only with .{modifier}")

    def take(self, *names: str) -> str:
        """Take the first modifier that is one of these names; "" if there is none."""
        for modifier in self._left:
            if modifier in names:
                self._left.remove(modifier)
                return modifier
        return ""

    def need(self, *names: str) -> str:
        """Take the first modifier that is one of these names, or refuse the instruction."""
        taken = self.take(*names)
        if not taken:
            raise self._instruction.unsupported(f"none of .{', .'.join(names)}")
        return taken

    def type(self) -> tuple[str, int]:
        """Take the last modifier as a type: its letter (b, u, s, f) or "pred", and its bits."""
        name = self._left.pop() if self._left else ""
        if name == "pred":
            return "pred", 1
        if name[:1] not in tuple("busf") or not name[1:].isdigit():
            raise self._instruction.unsupported(f"the type .{name} is not known")
        return name[0], int(name[1:])

    def done(self) -> None:
        """Refuse the instruction if a modifier is left."""
        if self._left:
            raise self._instruction.unsupported(f"the modifier .{self._left[0]} is not known")
