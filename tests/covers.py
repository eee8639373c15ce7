"""A test says which settings it covers, so that another test can ask for those that none covers."""


def covers(*names):
    "Mark a test as the one that shows what these settings do"
    def mark(test):
        test.covers = (*getattr(test, 'covers', ()), *names)
        return test
    return mark


def covered(module_globals, prefix=''):
    "All settings that tests of a module cover, without `prefix`; those of other prefixes are left out"
    found = [n for name, t in module_globals.items() if name.startswith('test_') for n in getattr(t, 'covers', ())]
    return sorted(n[len(prefix):] for n in found if n.startswith(prefix) and '.' not in n[len(prefix):])
