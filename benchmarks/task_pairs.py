"""Word pairs of simple tasks, written for ``task_vectors.py``: what is asked, and what is to be said."""

from __future__ import annotations

_ANTONYMS = """
hot cold, big small, up down, fast slow, rich poor, happy sad, light dark, old young, hard soft, early late, true false,
strong weak, tall short, good bad, clean dirty, wet dry, high low, deep shallow, thick thin, wide narrow, loud quiet, full empty,
open closed, near far, left right, front back, top bottom, first last, begin end, start stop, win lose, buy sell, give take,
push pull, love hate, laugh cry, rise fall, come go, day night, summer winter, north south, east west, man woman, boy girl,
king queen, friend enemy, war peace, life death, heaven hell, black white, sweet bitter, smooth rough, sharp dull, brave cowardly,
easy difficult, cheap expensive, heavy light, new old, safe dangerous, simple complex, smart stupid, beautiful ugly, alive dead,
above below, inside outside, before after, always never, all none, everything nothing, many few, more less, most least,
male female, public private, positive negative, maximum minimum, major minor, upper lower, success failure, victory defeat,
accept reject, arrive depart, attack defend, include exclude, increase decrease, remember forget, lend borrow, import export
"""
_CAPITALS = """
France Paris, Italy Rome, Japan Tokyo, Spain Madrid, Germany Berlin, Russia Moscow, China Beijing, Greece Athens, Egypt Cairo,
Cuba Havana, Peru Lima, Norway Oslo, Austria Vienna, Portugal Lisbon, Ireland Dublin, Kenya Nairobi, England London, Scotland Edinburgh,
Sweden Stockholm, Finland Helsinki, Denmark Copenhagen, Poland Warsaw, Hungary Budapest, Romania Bucharest, Bulgaria Sofia,
Serbia Belgrade, Croatia Zagreb, Ukraine Kiev, Belarus Minsk, Latvia Riga, Lithuania Vilnius, Estonia Tallinn, Iceland Reykjavik,
Belgium Brussels, Turkey Ankara, Iran Tehran, Iraq Baghdad, Syria Damascus, Lebanon Beirut, Jordan Amman, Israel Jerusalem,
India Delhi, Pakistan Islamabad, Afghanistan Kabul, Nepal Kathmandu, Bangladesh Dhaka, Thailand Bangkok, Vietnam Hanoi,
Indonesia Jakarta, Philippines Manila, Taiwan Taipei, Mongolia Ulaanbaatar, Australia Canberra, Canada Ottawa, Chile Santiago,
Argentina Buenos, Uruguay Montevideo, Paraguay Asuncion, Colombia Bogota, Venezuela Caracas, Ecuador Quito, Bolivia La,
Brazil Brasilia, Jamaica Kingston, Nicaragua Managua, Honduras Tegucigalpa, Morocco Rabat, Algeria Algiers, Tunisia Tunis,
Libya Tripoli, Sudan Khartoum, Ethiopia Addis, Somalia Mogadishu, Uganda Kampala, Rwanda Kigali, Ghana Accra, Senegal Dakar,
Zimbabwe Harare, Zambia Lusaka, Angola Luanda, Georgia Tbilisi, Armenia Yerevan, Azerbaijan Baku, Kazakhstan Astana, Malta Valletta
"""
_PLURALS = """
cat cats, dog dogs, man men, child children, city cities, house houses, foot feet, tree trees, car cars, knife knives, box boxes,
woman women, baby babies, bird birds, leaf leaves, star stars, book books, table tables, chair chairs, bus buses, glass glasses,
dish dishes, church churches, wife wives, life lives, wolf wolves, half halves, shelf shelves, tooth teeth, goose geese, mouse mice,
country countries, story stories, party parties, lady ladies, family families, army armies, hero heroes, potato potatoes,
tomato tomatoes, hand hands, eye eyes, king kings, queen queens, road roads, river rivers, song songs, game games, door doors,
window windows, flower flowers, apple apples, orange oranges, banana bananas, friend friends, teacher teachers, doctor doctors,
nurse nurses, farmer farmers, soldier soldiers, student students, school schools, hospital hospitals, bridge bridges, island islands,
mountain mountains, lake lakes, ocean oceans, horse horses, cow cows, rabbit rabbits, monkey monkeys, elephant elephants, tiger tigers,
lion lions, bear bears, fox foxes, match matches, brush brushes, watch watches, beach beaches, dress dresses, shoe shoes, hat hats
"""
_PAST = """
go went, see saw, run ran, eat ate, take took, give gave, come came, make made, find found, know knew, think thought, write wrote,
speak spoke, drive drove, break broke, fall fell, bring brought, buy bought, catch caught, teach taught, fight fought, seek sought,
feel felt, keep kept, sleep slept, leave left, meet met, lose lost, send sent, spend spent, build built, lend lent, hold held,
tell told, sell sold, stand stood, understand understood, hear heard, say said, pay paid, lay laid, begin began, drink drank,
sing sang, swim swam, ring rang, sink sank, sit sat, win won, dig dug, hang hung, stick stuck, swing swung, grow grew, blow blew,
throw threw, fly flew, draw drew, wear wore, tear tore, bear bore, swear swore, choose chose, freeze froze, steal stole, wake woke,
ride rode, rise rose, shake shook, mistake mistook, forget forgot, get got, shoot shot, bite bit, hide hid, lead led, feed fed,
become became, overcome overcame, walk walked, talk talked, jump jumped, play played, look looked, call called, help helped
"""
_COMPARATIVES = """
big bigger, small smaller, fast faster, good better, bad worse, hot hotter, old older, young younger, strong stronger, weak weaker,
rich richer, cheap cheaper, long longer, short shorter, easy easier, happy happier, tall taller, wide wider, deep deeper, high higher,
low lower, cold colder, warm warmer, cool cooler, dark darker, light lighter, bright brighter, heavy heavier, hard harder,
soft softer, loud louder, quiet quieter, clean cleaner, dirty dirtier, dry drier, wet wetter, thick thicker, thin thinner, fat fatter,
large larger, great greater, near nearer, close closer, far further, late later, early earlier, slow slower, quick quicker, smart smarter,
wise wiser, brave braver, kind kinder, nice nicer, poor poorer, safe safer, sharp sharper, smooth smoother, rough rougher, simple simpler,
strange stranger, sweet sweeter, tough tougher, busy busier, lucky luckier, pretty prettier, ugly uglier, funny funnier, angry angrier,
hungry hungrier, healthy healthier, noisy noisier, lazy lazier, crazy crazier, tiny tinier, narrow narrower, clever cleverer, full fuller,
new newer, fine finer, pure purer, rare rarer, broad broader, steep steeper, mild milder, grand grander, proud prouder
"""
_PARTICIPLES = """
go going, see seeing, run running, eat eating, take taking, give giving, come coming, make making, find finding, know knowing,
think thinking, write writing, speak speaking, drive driving, break breaking, fall falling, bring bringing, buy buying, catch catching,
teach teaching, fight fighting, seek seeking, feel feeling, keep keeping, sleep sleeping, leave leaving, meet meeting, lose losing,
send sending, spend spending, build building, hold holding, tell telling, sell selling, stand standing, hear hearing, say saying,
pay paying, lay laying, begin beginning, drink drinking, sing singing, swim swimming, ring ringing, sit sitting, win winning,
dig digging, hang hanging, grow growing, blow blowing, throw throwing, fly flying, draw drawing, wear wearing, tear tearing,
choose choosing, steal stealing, wake waking, ride riding, rise rising, shake shaking, forget forgetting, get getting, shoot shooting,
bite biting, hide hiding, lead leading, feed feeding, become becoming, walk walking, talk talking, jump jumping, play playing,
look looking, call calling, help helping, dance dancing, smile smiling, move moving, live living, use using, try trying, study studying
"""
_CAPITALIZED = """
water Water, bread Bread, night Night, morning Morning, music Music, paper Paper, light Light, stone Stone, metal Metal, gold Gold,
silver Silver, iron Iron, wood Wood, fire Fire, earth Earth, wind Wind, rain Rain, snow Snow, cloud Cloud, storm Storm, sea Sea,
beach Beach, forest Forest, garden Garden, field Field, valley Valley, desert Desert, village Village, street Street, market Market,
office Office, kitchen Kitchen, bedroom Bedroom, wall Wall, floor Floor, roof Roof, clock Clock, lamp Lamp, mirror Mirror,
picture Picture, letter Letter, pencil Pencil, phone Phone, camera Camera, radio Radio, train Train, plane Plane, boat Boat, ship Ship,
bicycle Bicycle, engine Engine, wheel Wheel, bottle Bottle, cup Cup, plate Plate, spoon Spoon, fork Fork, cheese Cheese, butter Butter,
sugar Sugar, salt Salt, coffee Coffee, tea Tea, milk Milk, wine Wine, beer Beer, fish Fish, meat Meat, rice Rice, soup Soup,
fruit Fruit, cake Cake, chocolate Chocolate, money Money, bank Bank, law Law, science Science, history History, art Art, sport Sport,
health Health, power Power, energy Energy, nature Nature, heart Heart, brain Brain, blood Blood, body Body, mind Mind, dream Dream
"""


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    return tuple(
        (word, answer) for word, answer in (pair.split() for pair in text.strip().split(","))
    )


# A query has one answer, and stands in a task once.
TASKS: dict[str, tuple[tuple[str, str], ...]] = {
    "antonym": _pairs(_ANTONYMS),
    "capital of a country": _pairs(_CAPITALS),
    "plural": _pairs(_PLURALS),
    "past tense": _pairs(_PAST),
    "comparative": _pairs(_COMPARATIVES),
    "present participle": _pairs(_PARTICIPLES),
    "first letter in upper case": _pairs(_CAPITALIZED),
}
