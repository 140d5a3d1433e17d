"""What mpirun and srun start as each rank: the supervisor of the command, with this package and nothing else.

    python -I -S remote_rank.py JOB ATTEMPT
"""

import os
import sys

# -I and -S: nothing of the user's Python environment can break it. So the package's own folder is not on the path.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from launch.supervise import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
