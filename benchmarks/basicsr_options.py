"""How many of BasicSR's own option files pass the check: python -m benchmarks.basicsr_options FOLDER.

FOLDER is `options` of a checkout of BasicSR's git master, with `train` and `test` in it. A file is refused for its form
where anything is wrong with it but weights that are not there and GPUs that this machine does not have.
"""

import sys
from pathlib import Path

from promptir_basicsr import activate


def main() -> None:
    activate()
    from promptir_basicsr.checks.run import check_options
    from promptir_basicsr.options.file import read_option_file

    root = Path(sys.argv[1])
    paths, refused = sorted(root.rglob('*.yml')), []
    for path in paths:
        options, places = read_option_file(str(path))
        problems = [
            each
            for each in check_options(options, 'train' in options)
            if each.kind != 'machine' and not (each.path[:1] == ('path',) and 'does not exist' in each.message)
        ]
        if problems:
            refused.append(path)
        for each in problems:
            print(f'{path.relative_to(root)}: {places.located(each).partition(": ")[2]}')
    print(f'{len(paths) - len(refused)} of {len(paths)} are not refused for their form.')


if __name__ == '__main__':
    main()
