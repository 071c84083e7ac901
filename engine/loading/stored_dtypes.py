"""The dtypes that the parts of quantised weights may be stored in. Others would be read as other numbers."""

import torch

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
E8M0 = (torch.float8_e8m0fnu, torch.uint8)  # scales that are powers of two
INDICES = (torch.int32, torch.int64)
ZERO_POINTS = (torch.int8, *INDICES)  # of 8 bits
