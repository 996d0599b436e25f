def run_search(*a):
    raise RuntimeError
