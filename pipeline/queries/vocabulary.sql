-- distinct words, and their ratio to all words (type-token ratio), per run and style
SELECT run, style, count(*) AS words, count(DISTINCT word) AS distinct_words,
       round(count(DISTINCT word) / count(*), 4) AS type_token_ratio
FROM (SELECT run, style, unnest(regexp_extract_all(lower(text), '[\p{L}\p{N}'']+')) AS word
      FROM caption_texts WHERE text <> '' AND $run IN ('', run))
GROUP BY ALL ORDER BY ALL
