from loadtest.sim.cache import PagedCache


def serve(cache: PagedCache, *pages: int) -> int:
    found = cache.hits(pages)
    assert cache.admit(pages, 0)
    cache.release(pages, 0)
    return found


def test_a_prompt_hits_as_far_as_it_agrees_with_one_before():
    cache = PagedCache(10)
    assert serve(cache, 1, 2, 3) == 0
    assert serve(cache, 1, 2, 9) == 2


def test_the_next_turn_hits_the_answer_too():
    cache = PagedCache(10)
    assert cache.admit([1, 2], 2)
    cache.release([1, 2], 2, answer=[3, 4])
    assert cache.hits([1, 2, 3, 4, 5]) == 4


def test_the_least_recently_used_prompt_is_forgotten_first_and_its_end_before_its_beginning():
    cache = PagedCache(4)
    serve(cache, 1, 2)
    serve(cache, 3, 4)
    serve(cache, 1, 2)
    serve(cache, 5)
    assert (cache.hits([1, 2]), cache.hits([3, 4])) == (2, 1)


def test_pages_of_running_sequences_stay():
    cache = PagedCache(3)
    assert cache.admit([1, 2], 0)
    assert not cache.admit([3, 4], 0)
    assert cache.admit([1, 2, 3], 0)
    cache.release([1, 2, 3], 0)
    assert cache.hits([1, 2]) == 2
    assert cache.usage == 2 / 3


def test_answers_in_the_making_take_room():
    cache = PagedCache(3)
    assert cache.admit([1], 2)
    assert not cache.admit([2], 0)
    cache.release([1], 2)
    assert cache.admit([2], 2)
