"""Common first and last names; their pairs name the people of a made-up phone book."""

_FIRST = """
Aaron Abigail Adam Adrian Agnes Alan Albert Alejandro Alexis Alice Alicia Allison Alma Alvin Amanda
Amber Amelia Amy Ana Andrea Andrew Angela Anita Anna Anthony Antonio April Arthur Ashley Audrey
Barbara Beatrice Benjamin Bernard Beth Betty Beverly Billy Bonnie Brandon Brenda Brian Bruce Bryan
Calvin Camila Carl Carla Carmen Carol Caroline Catherine Cecilia Chad Charles Charlotte Cheryl
Chloe Christina Christopher Claire Clara Clarence Connie Craig Crystal Curtis Cynthia Daisy Dale
Daniel Danielle Darlene David Dawn Deborah Denise Dennis Derek Diana Diego Donald Donna Doris
Dorothy Douglas Duane Dylan Earl Edith Edward Eileen Elaine Eleanor Elena Elizabeth Ella Ellen
Elmer Emily Emma Eric Erica Erin Esther Ethan Eugene Eva Evelyn Faith Felicia Felix Fernando
Florence Frances Francisco Frank Frederick Gabriel Gail Gary George Gerald Gina Gladys Glenn Gloria
Grace Gregory Hannah Harold Harriet Harry Hazel Heather Hector Heidi Helen Henry Herbert Holly
Howard Hugo Ian Ida Irene Iris Isaac Isabel Ivan Jack Jacob Jacqueline James Janet Janice Jasmine
Jason Javier Jean Jeffrey Jenna Jennifer Jeremy Jerry Jessica Jill Joan Joel John Jonathan Jordan
Jose Joseph Joshua Joyce Juan Judith Julia Julian Justin Karen Katherine Keith Kelly Kenneth Kevin
Kimberly Kristen Kyle Larry Laura Lauren Lawrence Leah Leonard Leslie Lillian Linda Logan Lois
Loretta Louis Lucas Lucy Luis Lydia Lynn Madison Marcus Margaret Maria Mario Marjorie Mark Martha
Martin Marvin Mary Mason Matthew Maureen Megan Melissa Michael Michelle Miguel Mildred Molly Monica
Nancy Naomi Natalie Nathan Nicholas Nicole Noah Nora Norman Olga Olivia Oscar Pamela Patricia
Patrick Paul Paula Peggy Peter Philip Phyllis Priscilla Rachel Ralph Ramona Randall Raymond Rebecca
Regina Renee Ricardo Richard Robert Roberta Robin Rodney Roger Ronald Rosa Rosemary Roy Russell
Ruth Ryan Sabrina Sally Samantha Samuel Sandra Sara Scott Sean Sergio Shannon Sharon Sheila Sherry
Sofia Sonia Sophia Spencer Stanley Stella Stephanie Steven Stuart Susan Sylvia Tamara Tanya Teresa
Terry Thelma Theodore Theresa Thomas Tiffany Timothy Todd Tracy Travis Tyler Valerie Vanessa Vera
Vernon Veronica Victor Victoria Vincent Viola Virginia Vivian Walter Wanda Warren Wayne Wendy
Wesley William Yolanda Yvonne Zachary
"""

_LAST = """
Abbott Acosta Adams Adkins Aguilar Alexander Allen Alvarado Alvarez Anderson Andrews Archer
Armstrong Arnold Ashby Atkins Austin Avery Ayala Bailey Baker Baldwin Ball Banks Barber Barker
Barnes Barnett Barrera Barrett Barron Barton Bates Baxter Beard Beasley Becerra Beck Becker Bell
Beltran Bender Benitez Bennett Benson Bentley Berg Berry Best Bishop Black Blackwell Blair Blake
Blanchard Blankenship Boone Booth Bowen Bowers Bowman Boyd Boyer Bradford Bradley Bradshaw Brady
Branch Bray Brennan Brewer Bridges Briggs Brock Brooks Brown Browning Bryant Buchanan Buck Buckley
Bullock Burch Burgess Burke Burnett Burns Burton Bush Butler Byrd Cabrera Cain Calderon Caldwell
Calhoun Callahan Cameron Campbell Campos Cannon Cantrell Cantu Cardenas Carey Carlson Carpenter
Carr Carrillo Carroll Carson Carter Casey Castaneda Castillo Castro Cervantes Chambers Chandler
Chaney Chapman Chase Chavez Chen Cherry Christensen Church Clarke Clayton Clements Cline Cobb
Cochran Coleman Collier Collins Combs Compton Conley Conner Contreras Conway Cooke Cooley Cooper
Copeland Cordova Cortez Costa Cowan Cox Crane Crawford Crosby Cross Cruz Cuevas Cummings Cunningham
Curry Dalton Daugherty Davenport Davidson Davis Dawson Deleon Delgado Dickerson Dillard Dixon
Dodson Dominguez Donovan Dorsey Dougherty Downs Doyle Drake Dudley Duffy Duncan Dunlap Dunn Duran
Durham Dyer Eaton Edwards Elliott Ellis Ellison Emerson English Erickson Escobar Esparza Espinoza
Estes Estrada Evans Everett Farley Farmer Farrell Faulkner Ferguson Fernandez Ferrell Fields
Figueroa Finley Fischer Fisher Fitzgerald Fleming Fletcher Flores Flowers Floyd Flynn Foley Forbes
Foreman Foster Fowler Franco Franklin Frazier Freeman French Frost Fry Fuentes Fuller Gaines
Gallagher Gallegos Galloway Galvan Gamble Garcia Gardner Garner Garrett Garrison Garza Gates Gentry
Gibbs Gibson Gilbert Gill Gillespie Gilmore Glass Glover Golden Gomez Gonzalez Good Goodman Goodwin
Gordon Gould Graham Grant Graves Gray Green Greer Griffin Griffith Grimes Gross Guerra Guerrero
Gutierrez Guzman Hahn Hale Hall Hamilton Hammond Hampton Hancock Hanna Hansen Hardin Harding Hardy
Harmon Harper Harrell Harrington Hart Hartman Harvey Hatfield Hayden Hayes Haynes Heath Hebert
Henderson Hendricks Henson Hernandez Herrera Herring Hess Hester Hickman Hicks Higgins Hill Hines
Hinton Hobbs Hodge Hoffman Hogan Holden Holland Holloway Holmes Holt Hood Hooper Hoover Hopkins
Horn Horton House Houston Hubbard Huber Hudson Huff Hughes Humphrey Hunt Hurley Hurst Hutchinson
Ibarra Ingram Irwin Jackson Jacobs Jacobson Jarvis Jefferson Jenkins Jennings Jensen Jimenez Johns
Johnson Johnston Jones Joyner Juarez Kaiser Kane Kaufman Keller Kemp Kendall Kennedy Kent Kerr Khan
Kim King Kirby Kirk Klein Kline Knapp Knight Knox Koch Kramer Lamb Lambert Landry Lang Larsen
Larson Lawson Leach Leblanc Levine Levy Lindsey Little Livingston Lloyd Logan Long Lopez Love Lowe
Lowery Lozano Lucero Lutz Lynch Lyons Macdonald Mack Macias Madden Maddox Mahoney Maldonado Malone
Mann Manning Marquez Marsh Marshall Massey Mathews Maxwell Mayer Maynard Mcbride Mccall Mccarthy
Mcclain Mcconnell Mccoy Mccullough Mcdaniel Mcdowell Mcfarland Mcgee Mcgrath Mcguire Mcintosh Mckay
Mckenzie Mckinney Mclaughlin Mcmahon Mcmillan Mcneil Meadows Medina Mejia Melton Mendez Mendoza
Mercado Mercer Merritt Meyer Middleton Miles Miller Mills Miranda Mitchell Molina Monroe Montes
Montgomery Moody Moon Mooney Moore Morales Moran Moreno Morgan Morris Morrison Morrow Morse Morton
Moses Mosley Moss Moyer Mueller Mullins Munoz Murphy Murray Myers Nash Navarro Neal Nelson Newman
Newton Nguyen Nichols Nielsen Nixon Noble Nolan Norris Norton Novak Nunez Obrien Ochoa Oconnor Odom
Odonnell Oliver Olsen Olson Oneal Orozco Orr Ortega Ortiz Osborne Owens Pacheco Padilla Page Palmer
Park Parker Parrish Parsons Patel Patterson Patton Payne Pearson Peck Pena Pennington Perez Perkins
Perry Peters Peterson Petersen Pham Phelps Phillips Pierce Pineda Pittman Pitts Pollard Ponce Poole
Porter Potter Potts Powell Powers Pratt Preston Price Prince Proctor Pruitt Pugh Quinn Ramirez
Ramos Ramsey Randolph Rangel Rasmussen Reese Reeves Reid Reilly Reyes Reynolds Rhodes Rich Richards
Richardson Riddle Riggs Riley Rios Ritter Rivas Rivera Roach Robbins Roberson Robertson Robinson
Robles Rocha Rodgers Rodriguez Rogers Rojas Rollins Roman Romero Rosales Rosario Ross Roth Rowe
Rowland Rubio Ruiz Rush Salas Salazar Salinas Sampson Sanchez Sanders Sandoval Sanford Santiago
Santos Saunders Savage Sawyer Schaefer Schmidt Schneider Schroeder Schultz Schwartz Sellers Serrano
Sexton Shaffer Shah Sharp Shaw Shelton Shepherd Sheppard Sherman Shields Short Silva Simmons Simon
Simpson Sims Singh Singleton Skinner Sloan Small Smith Snow Snyder Solis Solomon Sosa Soto Sparks
Spears Stafford Stanton Stark Steele Stein Stephens Stevens Stevenson Stewart Stokes Stone Stout
Strickland Strong Suarez Sullivan Summers Sutton Swanson Sweeney Tanner Tate Taylor Terrell
Thompson Thornton Torres Townsend Tran Trevino Trujillo Tucker Turner Underwood Valdez Valencia
Valentine Vance Vargas Vasquez Vaughn Vega Velasquez Velez Villa Villarreal Wade Wagner Walker
Wallace Waller Walls Walsh Walters Walton Ward Ware Washington Waters Watkins Watson Watts Weaver
Webb Weber Webster Weeks Weiss Welch Wells West Wheeler White Whitehead Whitney Wiggins Wilcox
Wiley Wilkerson Wilkins Wilkinson Williams Williamson Willis Wilson Winters Wise Wolfe Woodard
Woods Woodward Wright Wyatt Yang Yates York Young Zamora Zavala Zimmerman Zuniga
"""

FIRST_NAMES = tuple(_FIRST.split())
LAST_NAMES = tuple(_LAST.split())
