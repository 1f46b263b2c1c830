"""TEMPORARY placeholder by the lead so that integration can go on: the owner of gate.py overwrites it."""


def judge(text: str, finish: str, similarity: float | None, threshold: float | None) -> str:
    if not text.strip():
        return "empty"
    if finish == "length":
        return "truncated"
    return "off_image" if threshold is not None and similarity < threshold else "ok"
