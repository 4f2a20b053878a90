"""The settings of the tables: for every seed, parents that are trained once and kept in build/parents, inputs, test data."""

import digits
import others
import texts

SETTINGS = {
    f.__name__.replace("_", "-"): f
    for f in (
        digits.know_2,
        digits.know_3,
        digits.know_5,
        digits.know_2_inputs_16,
        digits.know_2_inputs_32,
        digits.know_2_inputs_128,
        digits.same_2_weak,
        digits.same_5_weak,
        digits.same_2_well,
        digits.same_2_unseen,
        digits.wide_into_narrow,
        digits.narrow_into_wide,
        texts.text_gpt,
        texts.text_gpt_tied,
        texts.text_llama,
        texts.text_bert,
        texts.text_t5,
        texts.two_texts_gpt,
        texts.two_texts_gpt_tied,
        texts.two_texts_llama,
        texts.two_texts_bert,
        texts.two_texts_t5,
        others.regression,
        others.image_to_text,
    )
}
