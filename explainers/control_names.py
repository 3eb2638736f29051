"""The names of the controls, for programs that read runs and need no PyTorch."""

CONTROLS = ("random", "center_gaussian", "sobel", "all_ones")
