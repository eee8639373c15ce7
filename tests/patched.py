"""A plugin for mypy (`.mypy.ini`): methods that fastcore's `@patch` adds are read as if they stood in their class, with what they set in it. Tried with mypy 2.4; what `@patch(...)` adds with options is left alone."""
from mypy.nodes import ClassDef, Decorator
from mypy.plugin import Plugin


def owner_of(node):
    "Name of the class that a function below `@patch` belongs to, None for everything else"
    if not (isinstance(node, Decorator) and node.decorators and getattr(node.decorators[0], 'name', '') == 'patch'): return None
    return getattr(node.func.type.arg_types[0], 'name', None) if node.func.type is not None and node.func.type.arg_types else None


class PatchPlugin(Plugin):
    def get_additional_deps(self, file):
        "Adds no dependency: it is the only place that mypy asks when a file is parsed and nothing in it is looked up yet, and there patched methods move into their class"
        classes = {n.name: n for n in file.defs if isinstance(n, ClassDef)}
        for owner, node in [(classes[k], n) for n in file.defs if (k := owner_of(n)) in classes]:
            del node.decorators[0]
            node.func.is_decorated = bool(node.decorators)
            file.defs.remove(node)
            owner.defs.body.append(node if node.decorators else node.func)
        return []


def plugin(version): return PatchPlugin
