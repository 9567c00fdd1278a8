"""Text methods on a real checkpoint: prompts written before measuring, and what is counted.

``report`` comes first because it takes this folder's parent off sys.path.
"""

import report as report
