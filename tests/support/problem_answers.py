"""Answers in which the station refuses a request."""

import httpx
import requests

from pinspect.station.problems import MEDIA_TYPE


def refusal(answer: requests.Response | httpx.Response) -> tuple[int, str]:
    """Assert that the answer is a problem document; return its status code and its detail."""
    assert answer.headers["content-type"] == MEDIA_TYPE
    assert answer.json()["status"] == answer.status_code
    return answer.status_code, answer.json()["detail"]
