import csv
import math

from promptir_basicsr.evaluation.results import Mean, Row, aligned, append_csv, average, markdown_table

ROWS = [
    Row('sets', 'noise', 10, {'psnr': 30.0, 'ssim': 0.9}, {'psnr': 20.0, 'ssim': 0.5}),
    Row('sets', 'rain', 1, {'psnr': 36.5, 'ssim': 0.95}, {'psnr': 25.0, 'ssim': 0.75}),
]


def test_the_average_counts_every_task_once_whatever_its_number_of_images():
    mean = average(ROWS)
    assert mean.values == {'psnr': 33.25, 'ssim': 0.925}
    assert mean.inputs == {'psnr': 22.5, 'ssim': 0.625}
    assert mean.images == 11


def test_a_mean_does_not_depend_on_the_order_of_the_images():
    values = [0.1 * i + 1e-9 * i**2 for i in range(1000)]
    means = []
    for order in (values, values[::-1], values[500:] + values[:500]):
        mean = Mean()
        for value in order:
            mean.add({'psnr': value})
        means.append(mean.result()['psnr'])
    assert means[0] == means[1] == means[2]


def test_the_table_shows_restored_and_input_with_the_fields_digits():
    assert markdown_table(ROWS, ['psnr', 'ssim']) == [
        '| task | images | psnr (input) | ssim (input) |',
        '|:--|--:|--:|--:|',
        '| noise | 10 | 30.00 (20.00) | 0.9000 (0.5000) |',
        '| rain | 1 | 36.50 (25.00) | 0.9500 (0.7500) |',
        '| average | 11 | 33.25 (22.50) | 0.9250 (0.6250) |',
    ]
    lines = aligned(markdown_table(ROWS, ['psnr', 'ssim']))
    assert len({len(line) for line in lines}) == 1
    assert lines[1].split() == ['noise', '10', '30.00', '(20.00)', '0.9000', '(0.5000)']


def test_rows_of_several_data_sets_name_theirs():
    rows = [ROWS[0], Row('other', 'noise', 2, {'psnr': 1.0}, {})]
    assert [line.split('|')[1].strip() for line in markdown_table(rows, ['psnr'])[2:4]] == [
        'sets: noise',
        'other: noise',
    ]


def test_an_identical_image_is_infinite_in_every_file(tmp_path):
    row = Row('sets', 'same', 1, {'psnr': math.inf}, {})
    assert '| inf |' in markdown_table([row], ['psnr'])[2]
    append_csv(str(tmp_path / 'metrics.csv'), 1, [row], ['psnr'])
    assert math.isinf(float((tmp_path / 'metrics.csv').read_text().splitlines()[1].split(',')[4]))


def test_the_csv_grows_by_rows_keeps_every_digit_and_saves_a_file_of_other_columns(tmp_path):
    path = str(tmp_path / 'metrics.csv')
    exact = Row('sets', 'noise', 3, {'psnr': 1 / 3}, {'psnr': 2 / 3})
    append_csv(path, 100, [exact], ['psnr'])
    append_csv(path, 200, [exact], ['psnr'])
    with open(path, newline='') as file:
        rows = list(csv.DictReader(file))
    assert [row['iter'] for row in rows] == ['100', '200']
    assert float(rows[0]['psnr']) == 1 / 3
    assert float(rows[0]['input_psnr']) == 2 / 3
    append_csv(path, 300, [exact], ['psnr', 'ssim'])
    assert len((tmp_path / 'metrics.csv.old').read_text().splitlines()) == 3
    assert len((tmp_path / 'metrics.csv').read_text().splitlines()) == 2
