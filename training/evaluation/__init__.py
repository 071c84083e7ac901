"""How good a served model is: MMLU, GSM8K, HumanEval, tasks of lm-eval and latency, through its HTTP API."""
