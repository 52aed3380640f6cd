"""Makes datasets/city_{en,zh}.{train,valid}.jsonl: messages to a city's desk, with the department that they are for.

A message is an opening, a problem at a place and a closing, drawn from the lists below. The last seven problems of every department
appear in the validation files only, so that no validation problem was seen in training; no message stands twice.

    python datasets/make_city.py
"""

import json
import random
from pathlib import Path

HELD_OUT, TRAIN, VALID = 7, 300, 100

EN = dict(
    places=[
        "Mill Lane", "Harbour Street", "the old market", "Linden Square", "Station Road", "the north bridge", "Baker's Row",
        "Castle Hill", "Weaver Street", "the library", "Orchard Way", "Kiln Street", "St. Anne's school", "Ferry Quay",
    ],
    openings=["Hello,", "Good morning,", "Hi there.", "Dear team,", "To whom it may concern:", "", "", ""],
    closings=[
        "Thank you.", "Could someone have a look?", "Please let me know what happens next.", "Regards, a neighbour", "Thanks in advance!",
        "It has been like this for a week.", "I have written about this before.", "", "", "",
    ],
    problems=dict(
        roads=[
            "there is a deep hole in the asphalt at {place}, and cyclists swerve around it",
            "the traffic light at {place} stays red for cars coming from the left",
            "the zebra crossing near {place} can hardly be seen any more",
            "someone has knocked over the speed sign at {place}",
            "the kerb at {place} has crumbled, and wheelchairs cannot get up",
            "two street lamps at {place} have gone dark, so drivers see nothing at night",
            "the pavement at {place} has lifted and people trip over the slabs",
            "the works at {place} left loose gravel all over the lane",
            "cars race down past {place} because the speed bump was taken away",
            "the one-way sign at {place} points in the wrong direction",
            "black ice forms at {place} every morning and nobody grits it",
            "the cycle lane at {place} ends in front of a barrier without any warning",
            "the bollards at {place} are bent and lie across the carriageway",
            "after the roadworks at {place} the surface is as rough as a field",
            "the mirror at the blind corner of {place} is broken",
            "the lane markings at {place} were painted over each other and confuse everybody",
            "a manhole cover at {place} rattles and sits too low for motorbikes",
            "the bus stop at {place} has no kerb to step out on",
            "drivers cannot see the junction at {place} because the warning sign is turned around",
            "the asphalt at {place} is cracked from one side to the other",
            "the pedestrian light at {place} turns green for three seconds only",
            "lorries have torn up the edge of the street at {place}",
            "the bridge joint at {place} bangs under every car and a piece sticks out",
            "at {place} the paint that separates bikes from cars has worn off",
        ],
        waste=[
            "the bins at {place} were not emptied this week",
            "somebody dumped an old sofa and a fridge at {place}",
            "the paper container at {place} is full and boxes pile up beside it",
            "we never got the brown bin that we ordered for {place}",
            "seagulls have torn open the rubbish bags at {place}",
            "the glass bank at {place} overflows and bottles stand all around it",
            "the collection lorry drove past {place} without stopping",
            "how can I get rid of paint tins and batteries at {place}?",
            "the lid of our recycling bin at {place} has broken off",
            "there are heaps of litter at {place} after the weekend",
            "I would like a larger bin for our house at {place}",
            "builders leave their rubble next to the containers at {place}",
            "the calendar says Tuesday, but at {place} they collected on Monday",
            "nobody picked up the Christmas trees at {place}",
            "the public litter bins at {place} have been taken away",
            "there is a smell of rotten food from the skips at {place}",
            "rats live between the refuse sacks at {place}",
            "our garden cuttings at {place} are still waiting for collection",
            "a mattress and three tyres have appeared overnight at {place}",
            "the man on the truck refused to take our cardboard at {place}",
            "where do I bring an old washing machine from {place}?",
            "plastic wrappers blow out of the containers at {place} whenever it is windy",
            "the compost bin at {place} was left behind again",
            "we have moved to {place} and need bins for glass and for paper",
        ],
        water=[
            "brown liquid comes out of our tap at {place}",
            "there has been no pressure in the shower at {place} since yesterday",
            "a pipe has burst at {place} and the cellar is filling up",
            "the drain at {place} is blocked and everything stands under water",
            "my meter at {place} shows twice as much as last year",
            "the sewer at {place} smells so badly that we keep the windows shut",
            "what comes from the tap at {place} tastes of chlorine",
            "the hydrant at {place} leaks day and night",
            "the supply was cut off at {place} without any notice",
            "my bill for {place} charges forty cubic metres that I never used",
            "after rain the gully at {place} pushes dirt back up into the yard",
            "the toilet at {place} gurgles whenever the neighbours use theirs",
            "is the limescale at {place} safe for a baby's bottles?",
            "the stopcock in front of {place} cannot be turned any more",
            "nobody has come to read the meter at {place}",
            "a wet patch at {place} grows although it has not rained",
            "sewage ran into our basement at {place} last night",
            "we would like to connect the new house at {place} to the mains",
            "the kitchen sink at {place} gives only a thin trickle",
            "white flakes float in every glass we fill at {place}",
            "the estimate for our consumption at {place} cannot be right",
            "the storm drain at {place} bubbles over in every shower",
            "there is a hissing sound from the main under {place} and a puddle",
            "do the lead pipes at {place} get replaced this year?",
        ],
        noise=[
            "the bar at {place} plays music until three in the morning",
            "a dog at {place} barks for hours while its owner is at work",
            "the builders at {place} start drilling at six",
            "our neighbours at {place} hold parties every night of the week",
            "the fan on the roof of {place} hums so that nobody can sleep",
            "teenagers let off firecrackers at {place} after midnight",
            "delivery vans at {place} leave their engines and radios on at dawn",
            "someone at {place} practises the drums on Sundays",
            "the alarm of a shop at {place} has been ringing all weekend",
            "motorbikes roar up and down at {place} in the evenings",
            "the church at {place} now rings its bells at five",
            "leaf blowers at {place} howl during the lunch rest",
            "the wedding hall at {place} shakes our walls with its bass",
            "people shout in front of the kebab shop at {place} all night",
            "the air conditioning at {place} is louder than a lorry",
            "a rooster at {place} crows from four o'clock on",
            "the football ground at {place} uses its loudspeakers far too loudly",
            "we have not slept for days because of the karaoke at {place}",
            "the saw of the joiner at {place} shrieks until ten in the evening",
            "a car at {place} hoots whenever the children are picked up",
            "could you measure the decibels of the club at {place}?",
            "the upstairs tenant at {place} drags furniture around at two in the morning",
            "the generator behind {place} drones through the whole night",
            "there is screaming and singing at {place} after every match",
        ],
        parks=[
            "the swing in the playground at {place} hangs on one chain",
            "a large branch at {place} has broken and dangles over the benches",
            "the grass at {place} has not been mown since spring",
            "the roses at {place} are dying because nobody waters them",
            "somebody carved into the old oak at {place}",
            "the pond at {place} is covered in green slime and the ducks are gone",
            "could there be a bench under the trees at {place}?",
            "the fence around the dog meadow at {place} has a gap",
            "the sandpit at {place} is full of leaves and cat dirt",
            "the fountain on the lawn of {place} does not run this summer",
            "hedges at {place} have grown over the footpath through the green",
            "we would like to plant flowers around the trees at {place}",
            "the climbing frame at {place} has a loose rope",
            "caterpillars with stinging hairs hang in the oaks at {place}",
            "the gate of the gardens at {place} is locked on Sundays",
            "the slide at {place} has a sharp edge",
            "moles have turned the lawn at {place} into a ploughed field",
            "a dead birch at {place} looks as if it could fall on the playground",
            "the table tennis table under the chestnuts at {place} has lost its net",
            "is it allowed to barbecue on the meadow at {place}?",
            "the flower beds at {place} are nothing but weeds",
            "children cannot use the seesaw at {place}, its bolt is missing",
            "when will the shrubs at {place} be cut back so that one can sit there again?",
            "the ducklings at {place} get no shade since the willows were felled",
        ],
        permits=[
            "I would like to build a carport at {place}; which forms do I need?",
            "my application for a street party at {place} has not been answered",
            "how long does the approval of a dormer at {place} take?",
            "we want to open a cafe at {place} and put tables outside",
            "my resident's parking card for {place} runs out this month",
            "may I put up a sign above my shop at {place}?",
            "I need a copy of the building plans for {place}",
            "which papers are required to register a business at {place}?",
            "can I get a licence to sell waffles at {place} on Saturdays?",
            "the fee for our scaffold at {place} seems to be too high",
            "I want to object to the planning decision about {place}",
            "how do I renew my passport if I live at {place}?",
            "we would like to reserve two spaces for a removal van at {place}",
            "is planning consent needed for a garden shed at {place}?",
            "my appointment at the office near {place} was cancelled twice",
            "who signs the form for changing our address to {place}?",
            "the authorisation for our market stall at {place} names the wrong day",
            "do I have to apply before I cut a second door into my house at {place}?",
            "please send me the form for a taxi licence to {place}",
            "we would like to film a scene at {place} and ask for your consent",
            "when does the office decide about the extension of the house at {place}?",
            "where can I register my newborn daughter, we live at {place}?",
            "I have lost the certificate for my trade at {place} and need a duplicate",
            "is a written permission necessary for a banner at {place}?",
        ],
    ),
)

ZH = dict(
    places=[
        "磨坊巷", "港口街", "老市场", "椴树广场", "车站路", "北桥", "面包街", "城堡山", "织布街", "图书馆", "果园路", "窑街", "第三小学", "渡口码头",
    ],
    openings=["您好，", "早上好，", "你们好！", "尊敬的工作人员：", "", "", "", "请问，"],
    closings=["谢谢。", "能派人来看看吗？", "请告诉我接下来怎么办。", "一位居民敬上", "先谢过了！", "已经一个星期了。", "我以前也反映过。", "", "", ""],
    problems=dict(
        roads=[
            "{place}的柏油路上有一个深坑，骑车的人都得绕开",
            "{place}的红绿灯从左边来的车一直是红灯",
            "{place}附近的斑马线几乎看不见了",
            "{place}的限速牌被人撞倒了",
            "{place}的路缘石碎了，轮椅上不去",
            "{place}有两盏路灯不亮，晚上司机什么也看不清",
            "{place}的人行道拱起来了，大家都被绊倒",
            "{place}施工以后路面上全是碎石子",
            "{place}的减速带拆掉以后，汽车开得飞快",
            "{place}的单行道标志指错了方向",
            "{place}每天早上都结冰，没有人撒盐",
            "{place}的自行车道前面突然被护栏挡住",
            "{place}的隔离桩弯了，横在车道上",
            "{place}修完路以后路面像田地一样不平",
            "{place}转弯处的凸面镜碎了",
            "{place}的车道线重叠着画，谁也看不懂",
            "{place}的井盖太低，摩托车经过很危险",
            "{place}的公交站没有站台，下车要跳下来",
            "{place}路口的警告牌转了方向，司机看不到路口",
            "{place}的沥青从这边裂到了那边",
            "{place}的行人绿灯只有三秒钟",
            "大货车把{place}的路边压坏了",
            "{place}桥面的接缝翘起一块，每辆车过都咣当响",
            "{place}分开自行车和汽车的白线磨没了",
        ],
        waste=[
            "{place}的垃圾桶这个星期没有人来清空",
            "有人把旧沙发和冰箱丢在{place}",
            "{place}的废纸箱满了，纸盒堆在旁边",
            "我们在{place}申请的厨余桶一直没有送来",
            "海鸥把{place}的垃圾袋都啄开了",
            "{place}的玻璃回收箱溢出来，瓶子摆了一地",
            "收垃圾的车经过{place}没有停",
            "{place}这边的油漆桶和电池应该丢到哪里？",
            "我们在{place}的回收桶盖子断了",
            "周末过后{place}到处都是垃圾",
            "我想给{place}的住户换一个大一点的垃圾桶",
            "装修队把建筑废料堆在{place}的垃圾箱旁边",
            "日历上写星期二，{place}却在星期一就收了垃圾",
            "{place}的圣诞树没有人来收走",
            "{place}的公共垃圾箱被拿走了",
            "{place}的垃圾房里有剩饭菜的臭味",
            "{place}的垃圾袋之间有老鼠",
            "我们在{place}剪下来的树枝还等着收运",
            "{place}一夜之间出现了一张床垫和三个轮胎",
            "清运工不肯收我们在{place}的纸板",
            "{place}的旧洗衣机该送到哪里处理？",
            "一刮风，塑料包装就从{place}的箱子里飞出来",
            "{place}的堆肥桶又被落下没倒",
            "我们刚搬到{place}，需要放玻璃和废纸的桶",
        ],
        water=[
            "我们在{place}的水龙头流出来的是棕色的水",
            "从昨天起{place}的淋浴就没有水压",
            "{place}的水管爆了，地下室正在进水",
            "{place}的下水口堵了，到处都是积水",
            "我在{place}的水表读数比去年多一倍",
            "{place}的下水道太臭了，我们只能关着窗户",
            "{place}的自来水有一股漂白粉的味道",
            "{place}的消防栓日夜漏水",
            "{place}没有通知就停水了",
            "我在{place}的水费单多收了四十吨",
            "下雨以后{place}的雨水井把脏东西冲回院子里",
            "邻居一用水，{place}的马桶就咕噜响",
            "{place}的水垢对婴儿奶瓶安全吗？",
            "{place}门前的总阀门拧不动了",
            "一直没有人来{place}抄水表",
            "{place}没有下雨，地上湿的一片却越来越大",
            "昨天夜里污水流进了我们在{place}的地下室",
            "我们想把{place}的新房接上自来水管网",
            "{place}的厨房水槽只有细细一股水",
            "我们在{place}接的每杯水里都漂着白色的碎片",
            "{place}估算的用水量不可能对",
            "一下阵雨{place}的排水井就往外冒",
            "{place}地下的主管道嘶嘶作响，地面有一滩水",
            "{place}的铅水管今年会更换吗？",
        ],
        noise=[
            "{place}的酒吧放音乐放到凌晨三点",
            "{place}有一只狗，主人上班时它叫几个小时",
            "{place}的工地六点就开始打钻",
            "{place}的邻居每天晚上都开派对",
            "{place}屋顶上的风扇嗡嗡响，谁也睡不着",
            "半夜以后有年轻人在{place}放鞭炮",
            "天没亮{place}的送货车就开着发动机和收音机",
            "{place}有人星期天练架子鼓",
            "{place}一家店的警报器响了整个周末",
            "晚上摩托车在{place}轰着油门来回开",
            "{place}的教堂现在五点就敲钟",
            "{place}的吹叶机在午休时间吼个不停",
            "{place}的婚礼大厅低音震得我们墙都在抖",
            "{place}的烧烤店门口整夜有人大喊大叫",
            "{place}的空调外机比卡车还响",
            "{place}有一只公鸡四点钟就打鸣",
            "{place}的足球场喇叭开得太大声",
            "因为{place}的卡拉OK，我们好几天没睡好",
            "{place}木匠的电锯尖叫到晚上十点",
            "每次接孩子，{place}都有一辆车按喇叭",
            "能不能来测一下{place}那家夜店的分贝？",
            "{place}楼上的租客半夜两点拖家具",
            "{place}后面的发电机整夜轰隆作响",
            "每场比赛以后{place}都有人又叫又唱",
        ],
        parks=[
            "{place}游乐场的秋千只剩一根链子",
            "{place}有一根大树枝断了，挂在长椅上方",
            "{place}的草地从春天起就没有割过",
            "{place}的玫瑰没人浇水，快要枯死了",
            "有人在{place}的老橡树上刻字",
            "{place}的池塘长满绿藻，鸭子都不见了",
            "能不能在{place}的树下放一张长椅？",
            "{place}遛狗草地的围栏有一个缺口",
            "{place}的沙坑里都是落叶和猫屎",
            "{place}草坪上的喷泉今年夏天没有开",
            "{place}绿地里的树篱长到小路上来了",
            "我们想在{place}的树周围种花",
            "{place}攀爬架的绳子松了",
            "{place}的橡树上挂着有毒毛的毛毛虫",
            "{place}花园的门星期天锁着",
            "{place}的滑梯有一个锋利的边",
            "鼹鼠把{place}的草坪翻得像犁过一样",
            "{place}有一棵枯死的白桦，好像要倒在游乐场上",
            "{place}栗子树下的乒乓球台没有网了",
            "{place}的草地上允许烧烤吗？",
            "{place}的花坛里全是杂草",
            "{place}的跷跷板少了一个螺栓，孩子们不能玩",
            "{place}的灌木什么时候修剪，好让人再坐下来？",
            "{place}的柳树砍了以后，小鸭子没有阴凉的地方",
        ],
        permits=[
            "我想在{place}搭一个车棚，需要填哪些表？",
            "我申请在{place}办街道聚会，一直没有回复",
            "在{place}加建天窗的审批要多久？",
            "我们想在{place}开一家咖啡馆，并在外面摆桌子",
            "我在{place}的居民停车证这个月到期",
            "我可以在{place}的店面上方挂招牌吗？",
            "我需要一份{place}的建筑图纸复印件",
            "在{place}登记营业需要哪些材料？",
            "我能拿到星期六在{place}卖华夫饼的执照吗？",
            "我们在{place}搭脚手架的费用好像太高了",
            "我要对{place}的规划决定提出异议",
            "我住在{place}，怎么换发护照？",
            "我们想为搬家车在{place}预留两个车位",
            "在{place}盖花园小屋需要规划许可吗？",
            "我在{place}附近办事处的预约被取消了两次",
            "我们把地址改到{place}，表格由谁签字？",
            "我们在{place}市场摊位的批准书写错了日期",
            "我在{place}的房子开第二个门之前要申请吗？",
            "请把出租车执照的申请表寄到{place}",
            "我们想在{place}拍一场戏，请求你们同意",
            "{place}房屋扩建的申请什么时候能批下来？",
            "我们住在{place}，新生的女儿到哪里登记？",
            "我在{place}的营业证书丢了，需要补办",
            "在{place}挂横幅需要书面许可吗？",
        ],
    ),
)


def rows(lists, held_out, count, generator, separator):
    """`count` different messages, the departments in turn."""
    seen, found, around = set(), [], dict(openings=set(), closings=set())
    labels = list(lists["problems"])
    while len(found) < count:
        label = labels[len(found) % len(labels)]
        problems = lists["problems"][label]
        problems = problems[-HELD_OUT:] if held_out else problems[:-HELD_OUT]
        # Every problem comes as often as any other.
        wording = problems[len(found) // len(labels) % len(problems)]
        # Nor with the same words around it.
        opening, closing = (
            generator.choice(sorted(set(lists[part]) - {text for text, of in around[part] if of == wording}))
            for part in ("openings", "closings")
        )
        around["openings"].add((opening, wording))
        around["closings"].add((closing, wording))
        problem = wording.format(place=generator.choice(lists["places"]))
        if separator:
            problem = problem if opening.endswith((",", ":")) else problem[0].upper() + problem[1:]
            problem += "" if problem.endswith("?") else "."
        else:
            problem += "" if problem.endswith("？") else "。"
        text = separator.join(part for part in (opening, problem, closing) if part)
        if text not in seen:
            seen.add(text)
            found.append(dict(text=text, label=label))
    generator.shuffle(found)
    return found


def main():
    for name, lists, separator in [("en", EN, " "), ("zh", ZH, "")]:
        assert len({len(problems) for problems in lists["problems"].values()}) == 1
        generator = random.Random(11)
        train = rows(lists, False, TRAIN, generator, separator)
        valid = rows(lists, True, VALID, generator, separator)
        assert not {row["text"] for row in train} & {row["text"] for row in valid}
        for split, found in [("train", train), ("valid", valid)]:
            path = Path(__file__).parent / f"city_{name}.{split}.jsonl"
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found))


if __name__ == "__main__":
    main()
