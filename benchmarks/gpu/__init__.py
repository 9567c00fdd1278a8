"""What the GPU benchmarks share: timing, problems, peers. Every script runs by path.

``report`` comes first because it takes this folder's parent off sys.path.
"""

import report as report
