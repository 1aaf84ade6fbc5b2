"""Everyday concepts and the words that stand for them, for finding neurons that steer towards each.

A word counts if it is one token of the tokenizer with the space before it, as inside a sentence.
"""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

#: Minimum number of words of a concept: one word's probability says little about a topic.
MIN_WORDS = 4


@dataclass(frozen=True, kw_only=True)
class Concept:
    """A topic, and words that are frequent in texts about it."""

    name: str
    words: tuple[str, ...]

    def token_ids(self, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
        """Ids of those words that are one token, ascending."""
        encoded = (tokenizer(f" {word}", add_special_tokens=False).input_ids for word in self.words)
        return tuple(sorted({ids[0] for ids in encoded if len(ids) == 1}))


_WORDS = {
    "sea": "sea ship boat water waves sail shore deck captain island sailor wind beach harbor ocean",
    "war": "war soldiers army battle enemy gun guns soldier shot officer fight fighting fired rifle regiment",
    "food": "food dinner supper breakfast eat bread meat tea table hungry cook cake drink milk butter",
    "animals": "dog horse cat animal animals beast wolf bear bird cow horses dogs lion rabbit",
    "birds": "bird birds wings nest flew sing wing feathers eggs fly",
    "horses": "horse horses saddle ride rode riding rider mounted stable bridle",
    "money": "money pounds dollars pay paid gold price bank rich silver cost sell buy bought",
    "family": "mother father brother sister son daughter child children aunt uncle wife husband",
    "house": "house room door window stairs floor wall chair kitchen roof bed hall walls windows",
    "school": "school lesson teacher books study boys class learn master lessons read taught",
    "weather": "wind rain snow storm cold sun cloud clouds sky thunder weather warm",
    "winter": "snow cold ice winter frozen wind freezing white",
    "night": "night dark darkness moon stars evening midnight sleep lamp shadows",
    "morning": "morning breakfast dawn sun sunrise early woke awake daylight",
    "fire": "fire smoke flames burning flame burned burn ashes hot light",
    "forest": "trees forest woods tree wood branches leaves path bushes grass",
    "garden": "garden flowers roses flower grass leaves grow trees rose green",
    "river": "river stream water bank bridge boat banks lake valley",
    "mountains": "mountain hill mountains hills valley rocks rock cliff peak climb slope",
    "death": "death dead die died grave killed kill dying life buried",
    "love": "love heart loved dear kiss kissed marry lover beautiful happiness",
    "fear": "fear afraid terror frightened danger terrible trembling horror scared dread",
    "anger": "angry anger rage furious fierce cried fury temper hate",
    "laughter": "laughed laugh smile smiled laughing laughter funny joke merry smiling",
    "sadness": "tears cry weep crying sorrow sad grief wept sobbed unhappy",
    "illness": "doctor sick ill pain fever bed nurse hospital medicine wound wounded",
    "crime": "police murder crime prison thief detective inspector evidence guilty jail robbery",
    "church": "church god prayer pray minister sunday holy heaven soul bible priest",
    "royalty": "king queen prince princess crown throne palace castle lord royal",
    "clothes": "dress coat hat clothes shoes wore silk gown cap boots cloak shirt",
    "body": "hand hands arm arms head face eyes shoulder fingers foot feet hair",
    "colours": "white black red blue green yellow brown dark pink gray purple golden",
    "music": "music song sing sang piano voice songs singing play danced dance",
    "letters": "letter letters wrote write paper read written envelope writing note page",
    "travel": "train road journey station carriage travel car street town drive miles",
    "city": "street streets town city shop buildings houses crowd corner people",
    "farm": "farm field corn cattle barn fields wheat farmer cows land",
    "work": "work business job working labor trade office worked workers men",
    "time": "years days hours weeks months minutes hour week month year day",
    "numbers": "two three four five six seven eight nine ten twenty thirty hundred",
    "space": "ship planet space earth moon stars rocket sun world mars",
    "magic": "fairy magic witch dragon wizard giant spell enchanted wand dwarf",
    "law": "law judge court case lawyer trial jury witness justice",
    "games": "game play ball played playing cards games win team",
    "speech": "said asked answered replied cried spoke whispered shouted told words voice",
    "questions": "what why who how where when which whether",
    "women": "she her woman lady girl women girls herself madam ladies",
    "men": "man men boy boys gentleman fellow sir himself fellows",
    "childhood": "child boy girl baby children little toys doll cradle boys girls",
    "old-age": "old aged gray ancient grandfather grandmother years wrinkled",
    "sight": "eyes looked saw see seen watched look looking gazed stared glance",
    "sounds": "sound noise heard voice hear loud silence listened roar cry whisper",
    "walking": "walked walk walking steps step feet path road climbed crossed",
    "haste": "ran run running quickly hurried rushed fast swift hurry suddenly sprang",
    "sleep": "sleep asleep slept bed dream dreams awake sleeping tired woke",
    "thought": "thought think mind idea thinking wondered knew believe understand reason",
    "wishes": "want wanted wish hope wished hoped desire like longed",
    "duty": "must should ought duty obliged need right wrong",
    "doubt": "perhaps maybe might doubt possible probably suppose seemed guess",
    "plenty": "many much more great most all every several plenty",
    "size": "little small great large big long tall huge short tiny",
    "directions": "north south east west left right side across toward",
    "ships": "ship ships boat crew deck mast sails captain sailors cabin port anchor",
    "hunting": "hunt hunting hunter hunters shot rifle deer bear game trail tracks track",
    "weapons": "gun sword knife rifle pistol spear arrow arrows guns axe bow weapons",
    "water": "water wet sea river drink wash rain drops stream bath",
    "stone": "stone stones rock rocks wall sand iron dust brick",
    "holidays": "christmas holiday party gifts present dance feast merry celebrated",
}

CONCEPTS = tuple(Concept(name=name, words=tuple(words.split())) for name, words in _WORDS.items())
