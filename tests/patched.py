"""A plugin for mypy (`.mypy.ini`): methods that fastcore's `@patch` adds are read as if they stood in their class, with what they set in it."""
from mypy.nodes import CallExpr, ClassDef, Decorator, NameExpr
from mypy.plugin import Plugin


def added_by(node):
    "The first decorator of a top-level function, if it is `@patch`"
    first = node.decorators[0] if isinstance(node, Decorator) and node.decorators else None
    return first if getattr(first.callee if isinstance(first, CallExpr) else first, 'name', '') == 'patch' else None


class PatchPlugin(Plugin):
    def get_additional_deps(self, file):
        "Move what is patched into its class; mypy asks this when a file is parsed and nothing in it is looked up yet"
        classes = {n.name: n for n in file.defs if isinstance(n, ClassDef)}
        for node in [n for n in file.defs if added_by(n) is not None]:
            owner = classes.get(getattr(node.func.type.arg_types[0], 'name', '')) if node.func.type is not None else None
            if owner is None: continue
            is_property = isinstance(added_by(node), CallExpr) and 'as_prop' in added_by(node).arg_names
            node.decorators[:1] = [NameExpr('property')] if is_property else []
            node.func.is_decorated = bool(node.decorators)
            file.defs.remove(node)
            owner.defs.body.append(node if node.decorators else node.func)
        return []


def plugin(version): return PatchPlugin
