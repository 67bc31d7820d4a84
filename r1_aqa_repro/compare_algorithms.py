"""An old name of `scripts/compare_algorithms.py`."""

from r1_aqa_repro.common.errors import moved

main = moved("r1_aqa_repro.compare_algorithms", "Run python scripts/compare_algorithms.py.")

if __name__ == "__main__":
    main()
