-- habits of style, and how far first words are from the originals' (bits, 0 to 1), per run
WITH texts AS (
       SELECT run, style, text, lower(regexp_extract(text, '[\p{L}\p{N}]+')) AS first
       FROM caption_texts
       WHERE text <> '' AND (style <> 'original' OR status = 'ok') AND $run IN ('', run)),
     words AS (
       SELECT *, captions / sum(captions) OVER (PARTITION BY run, style) AS share
       FROM (SELECT run, style, first, count(*) AS captions FROM texts GROUP BY ALL)),
     common AS (  -- what only one of the two says adds half its share
       SELECT a.run, a.style,
              sum(a.share * log2(2 * a.share / (a.share + b.share)) - a.share
                  + b.share * log2(2 * b.share / (a.share + b.share)) - b.share) AS bits
       FROM words AS a JOIN words AS b ON a.run = b.run AND a.first = b.first
       WHERE b.style = 'original' GROUP BY ALL)
SELECT run, style, count(*) AS captions,
       round(avg(regexp_matches(text, '^[^\p{L}]*\p{Lu}')::INT), 4) AS begin_with_capital,
       round(avg((text = lower(text))::INT), 4) AS no_capital,
       round(avg(regexp_matches(text, '[.!?]["'')\]]*\s*$')::INT), 4) AS end_with_full_stop,
       round(avg(regexp_matches(text, '^\s')::INT), 4) AS begin_with_space,
       CASE WHEN run IN (SELECT run FROM words WHERE style = 'original')
            THEN round(1 + coalesce(any_value(bits), 0) / 2, 4) END AS first_word_divergence
FROM texts LEFT JOIN common USING (run, style)
GROUP BY run, style ORDER BY run, style
