"""Everyday concepts, those of children's stories first, and the words that stand for them, to look for neurons that
steer towards each.

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
    "dogs": "dog dogs puppy bark barked wagged tail bone paw kitten pet Spot pets barking loyal woof",
    "cats": "cat cats kitten mouse purr furry tail milk fur whiskers paw meow meowed purred kitty pets",
    "birds": "bird birds wings wing nest feathers feather sang flew fly beak eggs tree tweet chirp flying sky nests",
    "fish": "fish sea swim swam pond whale shark ocean fins net fishing fisherman water river boat catch caught",
    "farm-animals": "cow cows pig pigs sheep chicken hen duck horse farm farmer goat barn animals eggs goats rooster "
    "chick",
    "wild-animals": "bear wolf lion fox tiger elephant deer monkey giraffe jungle forest animals animal zoo owl bears "
    "tree woods",
    "insects": "bug bugs butterfly bee bees ant ants spider worm ladybug honey caterpillar flower crawled buzz wings "
    "fly tiny",
    "rabbits": "rabbit bunny carrot carrots hop hopped squirrel hole ears",
    "frogs": "frog pond duck turtle jumped hop snake lake toad",
    "horses": "horse horses rode ride riding saddle cart stable carriage",
    "dragons": "dragon dragons dinosaur monster castle fire cave knight roar giant beast",
    "family": "mom dad mother father brother sister daughter son parents family baby mommy daddy mum brothers aunt "
    "uncle mama papa",
    "grandparents": "grandma grandpa grandmother grandfather granny old aunt uncle",
    "babies": "baby cradle cried crying born child milk doll sleep babies nap diaper mommy cry tiny",
    "friends": "friend friends together friendly friendship share shared best buddy play played",
    "school": "school teacher class lesson learn book books read students study desk classroom learned learning "
    "lessons student",
    "children": "child children kids boys girls boy girl playground",
    "playing": "play played playing game games fun toys toy ball friends park laugh together",
    "toys": "toy toys doll dolls blocks teddy puzzle robot truck train kite box play shelf car",
    "ball": "ball balls kick kicked throw threw caught catch roll rolled bounce",
    "park": "park swing swings slide playground bench grass trees slid play ducks",
    "games": "game games win won race hide seek play team prize",
    "cars": "car cars truck trucks bus drive drove road wheels wheel fast zoom seat beep engine vroom",
    "trains": "train station rail track trip travel bus plane",
    "boats": "boat boats ship sail sailed raft captain sailor river lake row deck water sea wind fish waves ocean "
    "fishing",
    "sea": "sea ocean waves wave beach shore sand island water shells shell fish boat ship swim sail sailed "
    "whale tide coast ships",
    "water": "water wet river drink pond splash splashed bath lake stream swim pool",
    "rain": "rain cloud clouds storm thunder umbrella wet puddle mud raining rainbow rained rainy puddles lightning",
    "snow": "snow cold winter snowman frozen melt icy warm coat snowy snowflakes mittens sled",
    "sun": "sun sunny sunshine warm hot bright shining summer sky",
    "sky": "sky clouds cloud stars star moon sun plane rocket air",
    "night": "night dark moon stars star sleep darkness lamp evening asleep sky bed bedtime",
    "sleep": "sleep bed asleep sleeping sleepy tired nap dream dreams woke bedtime pillow blanket slept goodnight "
    "dreamed night",
    "morning": "morning breakfast woke sun early wake sunrise dawn",
    "forest": "forest tree trees woods leaves branch branches path bush wood animals bushes owl squirrel",
    "garden": "garden flowers flower plant plants grow seeds seed grass rose watered vegetables dirt soil water "
    "tomatoes bloom",
    "flowers": "flower flowers rose bloom petals garden smell smelled pretty bees",
    "mountains": "mountain mountains hill hills climb climbed rocks rock top cliff valley snow path peak tall high "
    "slope",
    "stones": "rock rocks stone stones gem shiny sand diamond",
    "fire": "fire smoke burn burned flames hot lit burning fireplace fireman match firefighter warm wood",
    "light": "light bright lamp shine shining sparkle glow shone candle lights shiny sun",
    "food": "food eat ate lunch dinner hungry soup bread meal tasty sandwich yummy delicious plate cheese eating",
    "sweets": "cake cookies cookie candy chocolate cream sweet sugar pie lollipop jelly yummy treat treats delicious",
    "fruit": "apple apples orange banana fruit fruits lemon berries strawberry pear grapes tree juicy sweet "
    "oranges bananas",
    "vegetables": "carrot carrots vegetables corn potato soup tomato peas garden",
    "cooking": "cook cooked kitchen oven pot bake baked stove pan bowl spoon recipe cooking soup food yummy chef",
    "drinks": "drink drank milk juice tea water cup bottle lemonade thirsty",
    "birthday": "birthday party cake balloons balloon gift present presents candles celebrate friends happy",
    "gifts": "gift present box gave surprise surprised wrapped open opened give birthday",
    "shopping": "store shop buy bought money market sell sold coins coin price shopping basket toys owner pay paid bag",
    "money": "money coins coin rich poor gold pay dollars sell price paid",
    "treasure": "treasure gold map chest jewels jewel pirate diamond coins key shiny",
    "music": "music song sing sang singing songs dance danced dancing piano drum guitar band tune play loud",
    "dancing": "dance danced dancing dancer music twirled spin spun steps",
    "art": "draw drew drawing paint painted painting picture pictures crayons crayon paper colors color brush",
    "colours": "red blue green yellow pink purple orange brown white black colors",
    "stories": "story stories book read tale page books reading told library pages",
    "letters": "letter letters paper write wrote pen mail pencil note envelope",
    "clothes": "dress shirt hat coat shoes clothes wear wore boots scarf jacket socks pants",
    "hair": "hair head brush comb long curly bow hat ears",
    "body": "hand hands arm arms leg legs foot feet knee fingers finger head",
    "face": "face eyes nose mouth ears cheek teeth smile lips tongue smiled looked cheeks tears head",
    "house": "house door window room roof wall floor kitchen stairs home rooms",
    "rooms": "room bed bedroom bathroom closet floor bath sofa kitchen chair",
    "furniture": "table chair bed couch desk shelf sofa lamp bench",
    "door": "door gate knock knocked key opened lock locked open closed",
    "city": "city town street streets buildings building people shop road corner",
    "farm": "farm farmer field fields barn corn crops hay cows tractor",
    "royalty": "king queen prince princess castle crown palace throne royal knight kingdom guards",
    "magic": "magic magical fairy wand wizard witch spell wish wishes genie sparkle",
    "wishes": "wish wished hope hoped wanted want dream dreamed",
    "war": "war army soldiers soldier enemy battle sword fight troops gun fort",
    "happiness": "happy happily smiled smile joy glad laughed cheerful happiness excited smiles proud fun",
    "laughter": "laughed laugh laughing giggled funny joke jokes silly smile smiled",
    "sadness": "sad cried cry crying tears upset unhappy lonely weep sadly sorry",
    "anger": "angry mad angrily yelled shouted furious annoyed mean anger fight upset",
    "fear": "scared afraid frightened fear scary dark monster brave danger nervous ran hid",
    "courage": "brave courage strong hero bravely proud fear save saved",
    "love": "love loved loves hug hugged kiss kissed heart dear hugs",
    "hugs": "hug hugged kiss kissed arms hugs cuddled",
    "kindness": "kind help helped helping helpful nice gentle generous care share shared thanked thank friendly",
    "sorry": "sorry forgive forgave apologized mistake mean promised promise hurt",
    "thanks": "thank thanked thanks grateful welcome please happy",
    "pain": "hurt pain ouch cut blood hit fell knee bandage sore injured cried leg doctor",
    "illness": "sick doctor hospital medicine ill nurse cold bed fever better pain cough",
    "death": "dead died death die killed grave buried kill dying",
    "danger": "danger dangerous careful safe hurt trouble warn warned accident",
    "police": "police officer thief stole steal jail stolen prison caught guard robber",
    "strength": "strong big heavy push pushed pull pulled lift muscles powerful lifted power",
    "size": "big small little tiny huge large tall giant",
    "speed": "fast quick quickly ran race slow speed slowly hurry run running faster",
    "climbing": "climb climbed climbing top tree ladder fell branch up high",
    "flying": "fly flew flying plane wings sky high kite air balloon bird",
    "walking": "walk walked walking path road way steps followed",
    "running": "ran run running race chased fast chase runs away",
    "cleaning": "clean cleaned mess messy dirty wash washed tidy soap broom dust cleaning",
    "mud": "mud muddy dirty dirt dug dig puddle mess hole",
    "lost": "lost find found search searched looking missing hidden hide gone looked",
    "hiding": "hide hid hiding hidden seek behind under secret find",
    "secrets": "secret mystery hidden mysterious clue key strange",
    "breaking": "broke broken break fix fixed cracked pieces crash tore torn",
    "work": "work worked working job build built hard busy fix machine",
    "building": "build built building blocks tower castle house bricks wood",
    "tools": "hammer saw nail knife tool tools scissors axe rope stick needle",
    "sounds": "sound noise loud heard hear noises voice quiet roar hum",
    "speech": "said asked replied answered shouted told whispered yelled exclaimed",
    "questions": "what why who how where when which",
    "thinking": "thought think idea knew wondered mind remembered know understand clever",
    "looking": "looked saw see look watched looking watching eyes seen stared",
    "time": "day days week year years hours minutes month hour weeks",
    "numbers": "two three four five six seven eight nine ten many",
    "holidays": "christmas holiday santa gifts celebrate party tree decorations",
    "space": "moon stars space rocket planet earth star astronaut",
    "hot-and-cold": "hot cold warm cool ice freezing heat",
    "smell-and-taste": "smell smelled taste tasted tasty yummy delicious sweet sour",
    "lies": "lie lied truth honest trick tricked tell lying fool",
    "church": "church god lord prayer pray heaven soul priest holy",
    "gentlemen": "sir gentleman mr master lady lord captain fellow",
    "travel": "trip travel journey road train adventure far explore traveled",
    "hunting": "hunt hunter hunting gun shot trap arrow bow deer killed",
    "directions": "left right north south east west across toward side",
    "good-and-bad": "good bad nice mean naughty wrong right",
}

CONCEPTS = tuple(Concept(name=name, words=tuple(words.split())) for name, words in _WORDS.items())
