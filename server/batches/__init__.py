"""Batches: files of requests that are answered beneath live traffic. What is stored of them is server.storage's.

runner.py       claims batches, and shares the lines in flight among them
run.py          one batch, from its validation to its files
lines.py        what a line is, and what is wrong with it
in_process.py   a line's request, asked of the app without a socket
"""
