"""Lets ParaView 5.11 load Python plugins under Python 3.11: it still asks `inspect` for a function that is gone."""

import inspect

inspect.getargspec = inspect.getfullargspec
